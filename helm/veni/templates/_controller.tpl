{{/* Other labels than the DaemonSet's: no selector matches both. */}}
{{- define "veni.controllerSelector" -}}
app.kubernetes.io/name: {{ include "veni.name" . }}-controller
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "veni.controllerLabels" -}}
{{ include "veni.controllerSelector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "veni.controllerServiceAccount" -}}
{{- if .Values.controller.serviceAccount.create -}}
{{- default (printf "%s-controller" (include "veni.fullname" .)) .Values.controller.serviceAccount.name -}}
{{- else -}}
{{- required "controller.serviceAccount.name: name the account, or let the chart make it (controller.serviceAccount.create)" .Values.controller.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What the daemons are told of cluster and cloud, the controller is told too; controller.env comes first. */}}
{{- define "veni.controllerEnv" -}}
{{- $shared := list "AWS_CA_BUNDLE" "AWS_EC2_METADATA_SERVICE_ENDPOINT" "AWS_ENDPOINT_URL" "AWS_ENDPOINT_URL_EC2" "AWS_REGION" "AWS_VPC_K8S_CNI_LOGLEVEL" "CLUSTER_NAME" "DISABLE_LEAKED_ENI_CLEANUP" "VENI_PROVIDER" -}}
{{- $own := dict "VENI_LEASE_NAME" (printf "%s-controller" (include "veni.fullname" .)) -}}
{{- $env := dict -}}
{{- range $name := $shared -}}
{{- with get $.Values.env $name -}}{{- $_ := set $env $name (include "veni.text" .) -}}{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.controller.env -}}
{{- if hasKey $own $name -}}{{- fail (printf "controller.env.%s: it follows from the release" $name) -}}{{- end -}}
{{- if kindIs "invalid" $value -}}{{- $_ := unset $env $name -}}{{- else -}}{{- $_ := set $env $name (include "veni.text" $value) -}}{{- end -}}
{{- end -}}
{{- range $name, $value := merge $env $own }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- end -}}
