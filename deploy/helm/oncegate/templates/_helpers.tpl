{{- define "oncegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- /* 52 characters, so that the longest suffix fits a label of DNS. */ -}}
{{- define "oncegate.fullname" -}}
{{- $name := include "oncegate.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "oncegate.selector" -}}
app.kubernetes.io/name: {{ include "oncegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "oncegate.labels" -}}
{{ include "oncegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Without the chart's version: a change of the chart alone restarts no pod. */ -}}
{{- define "oncegate.podLabels" -}}
{{ include "oncegate.selector" (index . 0) }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* Of an object: its name, its namespace, its labels. */ -}}
{{- define "oncegate.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "oncegate.fullname" $root }}{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "oncegate.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ index . 2 }}
{{- end -}}

{{- define "oncegate.image" -}}
{{- $image := .Values.image -}}
{{- $repository := required "image.repository is required: there is no published image yet" $image.repository -}}
{{- if $image.digest -}}
{{ $repository }}@{{ $image.digest }}
{{- else -}}
{{ $repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "oncegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "oncegate.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- /* The name by which bots of the cluster reach the Service: its certificate must have it. */ -}}
{{- define "oncegate.host" -}}
{{ include "oncegate.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{- /* Before 1.34 PreferSameZone has a name that newer versions warn of; a release may still have it as value. Where it is off by default, Kubernetes drops
       it without a word. */ -}}
{{- define "oncegate.trafficDistribution" -}}
{{- $wanted := .Values.service.trafficDistribution | replace "PreferClose" "PreferSameZone" -}}
{{- $is := .Capabilities.KubeVersion.Version -}}
{{- if semverCompare ">=1.34-0" $is -}}
{{ $wanted }}
{{- else if eq $wanted "PreferSameNode" -}}
{{- fail (printf "service.trafficDistribution: PreferSameNode needs Kubernetes 1.34, this is %s" $is) -}}
{{- else if semverCompare ">=1.31-0" $is -}}
PreferClose
{{- else -}}
{{- fail (printf "service.trafficDistribution: %s needs Kubernetes 1.31, this is %s" $wanted $is) -}}
{{- end -}}
{{- end -}}

{{- /* What every container has, whatever it runs. */ -}}
{{- define "oncegate.container" -}}
image: {{ include "oncegate.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [/oncegate]
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  privileged: false
  capabilities: {drop: [ALL]}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- /* What every pod has. No program here calls the API of Kubernetes. */ -}}
{{- define "oncegate.pod" -}}
automountServiceAccountToken: false
# Variables of Services would collide with those of oncegate.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  # So that the server can read the Secrets, which only root and this group may.
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}
