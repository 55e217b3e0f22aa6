{{/* Image of all pods except Redis: the digest decides, the tag is for readers. */}}
{{- define "rerank.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.tag }}:{{ . }}{{ end }}@{{ .Values.image.digest }}
{{- end }}

{{- define "rerank.partOf" -}}
app.kubernetes.io/part-of: rerank-service
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels that select the Ray pods of this release. */}}
{{- define "rerank.rayLabels" -}}
{{ include "rerank.partOf" . }}
app.kubernetes.io/component: ray
{{- end }}

{{/* Selector of the Ray pods and of the jobs that fetch models. */}}
{{- define "rerank.rayOrPull" -}}
matchLabels:
  {{- include "rerank.partOf" . | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [ray, pull]
{{- end }}

{{- define "rerank.redisLabels" -}}
{{ include "rerank.partOf" . }}
app.kubernetes.io/component: redis
{{- end }}

{{- define "rerank.monitoringLabels" -}}
{{ include "rerank.partOf" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "rerank.claim" -}}
{{ .Values.volume.existingClaim | default (printf "%s-models" .Release.Name) }}
{{- end }}

{{- define "rerank.ownRedis" -}}
{{ if and (eq .Values.gcs.backend "redis") (not .Values.gcs.redis.address) }}true{{ end }}
{{- end }}

{{/* Longest time that a request may take, in seconds; 60 is the service's default. */}}
{{- define "rerank.requestTimeout" -}}
{{ (dig "limits" "request_timeout_s" 60 .Values.config) | int }}
{{- end }}

{{/* Time in which a drained worker's replicas finish their requests, in seconds: an ingress needs 50 s more than a
     request, and Serve stops a replica that long before the deadline even if the replica has no replacement. */}}
{{- define "rerank.drainDeadline" -}}
{{ add (mul 2 (add (include "rerank.requestTimeout" . | int) 50)) 20 }}
{{- end }}
