{{- /*
For the chart of a bot that has this one as a dependency, in mode: sidecar. `$oncegate` is `.Subcharts.oncegate`:

  initContainers:
    {{- include "oncegate.sidecar" $oncegate | nindent 4 }}
  containers:
    - name: bot
      env:
        {{- include "oncegate.sidecar.env" $oncegate | nindent 8 }}
      volumeMounts:
        {{- include "oncegate.sidecar.mounts" $oncegate | nindent 8 }}
  volumes:
    {{- include "oncegate.sidecar.volumes" $oncegate | nindent 4 }}

The pod needs an fsGroup: the socket, and the Secrets of the server, belong to it.
*/ -}}

{{- /* The kubelet lets everybody write to an emptyDir. In a directory of its own, which the server makes, nobody can
       replace the socket. */ -}}
{{- define "oncegate.sidecar.address" -}}
unix:/run/oncegate/server/oncegate.sock
{{- end -}}

{{- /* A native sidecar: it starts before the bot, ends after it, and lets Jobs finish. */ -}}
{{- define "oncegate.sidecar" -}}
{{- $v := .Values -}}
{{- $address := include "oncegate.sidecar.address" . -}}
- name: oncegate
  restartPolicy: Always
  {{- include "oncegate.container" . | nindent 2 }}
  args:
    - serve
    - --listen={{ $address }}
    {{- if $v.sidecar.metrics }}
    - --ops-listen={{ $v.service.address }}:{{ $v.ops.port }}
    {{- end }}
    {{- if $v.auth.secretName }}
    - --auth=/etc/oncegate/auth/{{ $v.auth.key }}
    {{- end }}
    {{- include "oncegate.database.arguments" (list . $v.database) | nindent 4 }}
    - --migrate={{ eq $v.migrate.by "server" }}
    # Its only callers have ended before it is told to.
    - --lame-duck=0s
    - --drain-timeout={{ $v.shutdown.drainSeconds }}s
    {{- include "oncegate.settings" (merge (deepCopy $v.sidecar.settings) $v.settings) | trim | nindent 4 }}
  {{- with concat (include "oncegate.database.env" . | fromYamlArray) $v.extraEnv }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if $v.sidecar.metrics }}
  ports:
    - {name: oncegate-ops, containerPort: {{ $v.ops.port }}}
  {{- end }}
  # The bot starts once this has succeeded.
  startupProbe:
    exec:
      command: [/oncegate, health, {{ ternary "readiness" "liveness" $v.sidecar.waitForDatabase }}, "--server={{ $address }}"]
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 60
  # There is no readiness probe: it would make the bot unready when the database is out of reach.
  livenessProbe:
    exec:
      command: [/oncegate, health, liveness, "--server={{ $address }}"]
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  resources:
    {{- toYaml $v.sidecar.resources | nindent 4 }}
  volumeMounts:
    - name: oncegate-socket
      mountPath: /run/oncegate
    {{- include "oncegate.database.mounts" . | nindent 4 }}
    {{- if $v.auth.secretName }}
    - name: oncegate-auth
      mountPath: /etc/oncegate/auth
      readOnly: true
    {{- end }}
    {{- with $v.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- define "oncegate.sidecar.volumes" -}}
- name: oncegate-socket
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
{{ include "oncegate.database.volumes" (list . .Values.database) }}
{{- with .Values.auth.secretName }}
- name: oncegate-auth
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* For the bot: where the client libraries and the commands find the server. */ -}}
{{- define "oncegate.sidecar.env" -}}
- name: ONCEGATE_SERVER
  value: {{ include "oncegate.sidecar.address" . }}
{{- end -}}

{{- define "oncegate.sidecar.mounts" -}}
- name: oncegate-socket
  mountPath: /run/oncegate
  readOnly: true
{{- end -}}
