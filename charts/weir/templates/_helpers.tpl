{{/* Labels of every object. */}}
{{- define "weir.labels" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* What selects the pods of a component; it can never change. Given as (list "agent"). */}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/component: {{ index . 0 }}
{{- end -}}

{{/* Labels of those pods, given as (list "agent" release): none that changes with the chart, or every upgrade would start them anew. */}}
{{- define "weir.podLabels" -}}
{{ include "weir.selector" . }}
app.kubernetes.io/instance: {{ index . 1 }}
{{- end -}}

{{- define "weir.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* Control plane, for agents and people. */}}
{{- define "weir.host" -}}
weir-control-plane.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* What every pod has: no rights on the node. But for capture's they pass Pod Security "restricted". */}}
{{- define "weir.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "weir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Where SELinux enforces, it lets a container of the usual type enter no other pod's network. */}}
{{- define "weir.seLinuxType" -}}
{{- if .Values.agent.capture.enabled -}}
{{ .Values.agent.capture.seLinuxType | default (ternary "spc_t" "" .Values.openshift.enabled) }}
{{- end -}}
{{- end -}}

{{- define "weir.container" -}}
image: {{ include "weir.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "weir.containerSecurity" . | nindent 2 }}
{{- end -}}

{{- define "weir.logEnvironment" -}}
- name: WEIR_LOG
  value: {{ .Values.log.filter | quote }}
- name: WEIR_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- end -}}

{{/* Alive, and ready for what the pod is there for. */}}
{{- define "weir.probes" -}}
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
{{- end -}}

{{/* Where the pods of a component go, and how they rank: its values. */}}
{{- define "weir.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
