{{- /* What would let the server refuse to start, or start without protection, fails here already. */ -}}
{{- define "oncegate.check" -}}
{{- $v := .Values -}}
{{- $name := include "oncegate.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s is no name for a Service: set fullnameOverride to one that begins with a letter and has no dots" $name) -}}
{{- end -}}
{{- if not $v.insecure -}}
{{- if not $v.tls.secretName -}}
{{- fail "tls.secretName is required: a server for other machines needs TLS. Name a Secret with tls.crt and tls.key, or accept the risk with insecure: true" -}}
{{- end -}}
{{- if not $v.auth.secretName -}}
{{- fail "auth.secretName is required: a server for other machines authenticates callers. Name a Secret with auth.toml, or accept the risk with insecure: true" -}}
{{- end -}}
{{- end -}}
{{- if and (ne $v.tls.clients "none") (not $v.tls.secretName) -}}
{{- fail "tls.clients needs tls.secretName" -}}
{{- end -}}
{{- if and (eq $v.tls.clients "required") $v.test.enabled (not $v.test.tlsSecretName) -}}
{{- fail "test.tlsSecretName is required: with tls.clients: required, `helm test` needs a client certificate. Name its Secret, or set test.enabled: false" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas exceeds autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}

{{- /* Flags from a map of settings. A whole number must not become 1.6384e+04, nor a fraction a whole number. */ -}}
{{- define "oncegate.settings" -}}
{{- range $flag, $value := . }}
{{- $whole := false }}
{{- if kindIs "float64" $value }}{{ $whole = eq (floor $value) $value }}{{ end }}
- --{{ $flag }}={{ if $whole }}{{ printf "%.0f" $value }}{{ else }}{{ toString $value }}{{ end }}
{{- end }}
{{- end -}}

{{- define "oncegate.arguments" -}}
{{- $v := .Values -}}
- serve
- --listen={{ $v.service.address }}:{{ $v.service.port }}
- --ops-listen={{ $v.service.address }}:{{ $v.ops.port }}
{{- if $v.tls.secretName }}
- --tls-cert=/etc/oncegate/tls/tls.crt
- --tls-key=/etc/oncegate/tls/tls.key
{{- if ne $v.tls.clients "none" }}
- --tls-client-ca=/etc/oncegate/{{ ternary "client-ca" "tls" (not (empty $v.tls.clientCaSecretName)) }}/ca.crt
- --tls-client={{ $v.tls.clients }}
{{- end }}
{{- end }}
{{- if $v.auth.secretName }}
- --auth=/etc/oncegate/auth/{{ $v.auth.key }}
{{- end }}
{{- if $v.insecure }}
- --insecure
{{- end }}
{{ include "oncegate.database.arguments" (list . $v.database) }}
- --migrate={{ eq $v.migrate.by "server" }}
- --lame-duck={{ $v.shutdown.lameDuckSeconds }}s
- --drain-timeout={{ $v.shutdown.drainSeconds }}s
{{- include "oncegate.settings" $v.settings }}
{{- end -}}

{{- define "oncegate.mounts" -}}
{{- $v := .Values -}}
{{ include "oncegate.database.mounts" . }}
{{- if $v.tls.secretName }}
- name: tls
  mountPath: /etc/oncegate/tls
  readOnly: true
{{- end }}
{{- if and $v.tls.clientCaSecretName (ne $v.tls.clients "none") }}
- name: client-ca
  mountPath: /etc/oncegate/client-ca
  readOnly: true
{{- end }}
{{- if $v.auth.secretName }}
- name: auth
  mountPath: /etc/oncegate/auth
  readOnly: true
{{- end }}
{{- with $v.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Whole Secrets, not by subPath, which is never updated. */ -}}
{{- define "oncegate.volumes" -}}
{{- $v := .Values -}}
{{ include "oncegate.database.volumes" (list . $v.database) }}
{{- if $v.tls.secretName }}
- name: tls
  secret: {secretName: {{ $v.tls.secretName }}, defaultMode: 0440}
{{- end }}
{{- if and $v.tls.clientCaSecretName (ne $v.tls.clients "none") }}
- name: client-ca
  secret:
    secretName: {{ $v.tls.clientCaSecretName }}
    defaultMode: 0440
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- if $v.auth.secretName }}
- name: auth
  secret: {secretName: {{ $v.auth.secretName }}, defaultMode: 0440}
{{- end }}
{{- with $v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
