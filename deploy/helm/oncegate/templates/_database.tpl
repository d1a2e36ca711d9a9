{{- /* The arguments, variables, mounts and volumes by which a container finds PostgreSQL. Files, not variables:
       the server reads them again for each new connection. `migrate` has a Secret of its own if it is set. */ -}}

{{- define "oncegate.database.arguments" -}}
{{- $from := index . 1 -}}
- --database-url-file=/etc/oncegate/database/{{ $from.urlKey }}
{{- with $from.passwordKey }}
- --database-password-file=/etc/oncegate/database/{{ . }}
{{- end }}
{{- with (index . 0).Values.database.schema }}
- --database-schema={{ . }}
{{- end }}
{{- end -}}

{{- define "oncegate.database.env" -}}
{{- if .Values.database.caSecretName }}
- name: PGSSLROOTCERT
  value: /etc/oncegate/database-ca/{{ .Values.database.caKey }}
{{- end }}
{{- end -}}

{{- define "oncegate.database.mounts" -}}
- name: oncegate-database
  mountPath: /etc/oncegate/database
  readOnly: true
{{- if .Values.database.caSecretName }}
- name: oncegate-database-ca
  mountPath: /etc/oncegate/database-ca
  readOnly: true
{{- end }}
{{- end -}}

{{- define "oncegate.database.volumes" -}}
{{- $root := index . 0 -}}
{{- $from := index . 1 -}}
- name: oncegate-database
  secret:
    secretName: {{ required "database.secretName is required: the Secret with the URL of PostgreSQL" $from.secretName }}
    defaultMode: 0440
    items:
      - {key: {{ $from.urlKey }}, path: {{ $from.urlKey }}}
      {{- with $from.passwordKey }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- with $root.Values.database.caSecretName }}
- name: oncegate-database-ca
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: {{ $root.Values.database.caKey }}, path: {{ $root.Values.database.caKey }}}
{{- end }}
{{- end -}}

{{- /* The Secret of `oncegate migrate`, as YAML. */ -}}
{{- define "oncegate.migrate.from" -}}
{{- toYaml (ternary .Values.migrate .Values.database (not (empty .Values.migrate.secretName))) -}}
{{- end -}}
