{{- define "veni.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "veni.fullname" -}}
{{- $name := include "veni.name" . -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "veni.selector" -}}
app.kubernetes.io/name: {{ include "veni.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "veni.labels" -}}
{{ include "veni.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "veni.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "veni.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name the account, or let the chart make it (serviceAccount.create)" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "veni.image" -}}
{{- default (printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag)) .Values.image.override -}}
{{- end -}}

{{/* The environment that is not the user's to choose: it follows from where the chart mounts things. */}}
{{- define "veni.ownEnv" -}}
{{- $own := dict
  "HOST_CNI_BIN_PATH" "/host/opt/cni/bin"
  "HOST_CNI_CONFDIR_PATH" "/host/etc/cni/net.d"
  "VENI_CNI_CACHE_DIR" "/host/var/lib/cni"
  "VENI_CNI_VERSION" .Values.cni.version
  "VENI_NET_SYSCTL_DIR" "/host/proc/sys/net"
  "VENI_SOCKET" (printf "%s/ipamd.sock" .Values.runDir)
  "VENI_STATE_DIR" .Values.stateDir
-}}
{{- toJson $own -}}
{{- end -}}

{{- define "veni.env" -}}
{{- $own := include "veni.ownEnv" . | fromJson -}}
{{- $env := dict -}}
{{- range $name, $value := .Values.env -}}
{{- if hasKey $own $name -}}
{{- fail (printf "env.%s: it follows from what the chart mounts; set cni.binDir, cni.confDir, cni.cacheDir, cni.version, stateDir or runDir" $name) -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $env $name (toString $value) -}}{{- end -}}
{{- end -}}
{{- if not .Values.enableNetworkPolicy -}}{{- $_ := set $env "NETWORK_POLICY_ENFORCING_MODE" "none" -}}{{- end -}}
{{- range $name, $value := merge $env $own }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
- name: MY_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- if .Values.podMonitor.create }}
- name: NODE_ADDRESS
  valueFrom: {fieldRef: {fieldPath: status.hostIP}}
- name: VENI_METRICS_BIND_ADDRESS
  value: $(NODE_ADDRESS):{{ .Values.podMonitor.port }}
{{- end }}
{{- end -}}
