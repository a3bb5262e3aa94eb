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

{{/* A value as the daemon reads it. A number of YAML is a float: a mask written in hexadecimal would be 1.671168e+07. */}}
{{- define "veni.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}{{- printf "%.0f" . -}}{{- else -}}{{- toString . -}}{{- end -}}
{{- end -}}

{{/* "true" for what the daemon takes for true (core's Reader::bool, which is Go's ParseBool), else nothing. */}}
{{- define "veni.isTrue" -}}
{{- if has (include "veni.text" .) (list "1" "t" "T" "TRUE" "true" "True") -}}true{{- end -}}
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

{{/* What works on the node: the daemon, and what removes its traces. */}}
{{- define "veni.securityContext" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  # NET_ADMIN: links, rules, routes, nftables, conntrack, the filter's blocks. BPF: programs and maps. PERFMON: the
  # verifier takes programs of this kind from nobody without it.
  add: [NET_ADMIN, BPF, PERFMON]
{{- end -}}

{{/* cniBin: how the plugins' folder is mounted. */}}
{{- define "veni.volumeMounts" -}}
{{- $values := .root.Values -}}
- {name: state, mountPath: {{ $values.stateDir }}}
- {name: run, mountPath: {{ $values.runDir }}}
# Pinned programs and maps outlive the pod. The node mounts it, perhaps after this pod began.
- {name: bpf, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
# A container's own /proc/sys is read-only.
- {name: sysctls, mountPath: /host/proc/sys/net}
- {name: cni-conf, mountPath: /host/etc/cni/net.d}
# The daemon only looks whether portmap is there.
- {name: cni-bin, mountPath: /host/opt/cni/bin{{ .cniBin }}}
# Which pods the runtime has.
- {name: cni-cache, mountPath: /host/var/lib/cni, readOnly: true, mountPropagation: HostToContainer}
- {name: tmp, mountPath: /tmp}
{{- with $values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "veni.volumes" -}}
- {name: state, hostPath: {path: {{ .Values.stateDir }}, type: DirectoryOrCreate}}
- {name: run, hostPath: {path: {{ .Values.runDir }}, type: DirectoryOrCreate}}
- {name: bpf, hostPath: {path: /sys/fs/bpf, type: Directory}}
- {name: sysctls, hostPath: {path: /proc/sys/net, type: Directory}}
- {name: cni-conf, hostPath: {path: {{ .Values.cni.confDir }}, type: DirectoryOrCreate}}
- {name: cni-bin, hostPath: {path: {{ .Values.cni.binDir }}, type: DirectoryOrCreate}}
- {name: cni-cache, hostPath: {path: {{ .Values.cni.cacheDir }}, type: DirectoryOrCreate}}
- {name: tmp, emptyDir: {sizeLimit: 16Mi}}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "veni.env" -}}
{{- $own := include "veni.ownEnv" . | fromJson -}}
{{- $env := dict -}}
{{- range $name, $value := .Values.env -}}
{{- if hasKey $own $name -}}
{{- fail (printf "env.%s: it follows from what the chart mounts; set cni.binDir, cni.confDir, cni.cacheDir, cni.version, stateDir or runDir" $name) -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $env $name (include "veni.text" $value) -}}{{- end -}}
{{- end -}}
{{- /* "false", a string, is the form of the aws-vpc-cni chart. */ -}}
{{- if eq (toString .Values.enableNetworkPolicy) "false" -}}{{- $_ := set $env "NETWORK_POLICY_ENFORCING_MODE" "none" -}}{{- end -}}
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
