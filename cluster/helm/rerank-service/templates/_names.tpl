{{/* Image of all pods except Redis: the digest decides, the tag is for readers. */}}
{{- define "rerank.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.tag }}:{{ . }}{{ end }}@{{ .Values.image.digest }}
{{- end }}

{{- define "rerank.partOf" -}}
app.kubernetes.io/part-of: rerank-service
app.kubernetes.io/instance: {{ .Release.Name | quote }}
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

{{/* Annotation of the Ray pods. A process reads its variables only when it starts, so that a change of rayEnvironment
     must start a new cluster. */}}
{{- define "rerank.environmentAnnotation" -}}
{{- with .Values.rayEnvironment -}}
annotations:
  rerank-service/ray-environment: {{ toYaml . | sha256sum | trunc 16 | quote }}
{{- end }}
{{- end }}

{{/* Service and port to which an Ingress or HTTPRoute sends requests. During an incremental upgrade, only the Gateway
     that KubeRay makes divides the requests between the clusters; RELEASE-serve-svc would send all of them to the old
     cluster, which shrinks. */}}
{{- define "rerank.backend" -}}
{{- if eq .Values.upgrade.type "NewClusterWithIncrementalUpgrade" -}}
name: {{ .Values.upgrade.gatewayService | default (printf "%s-gateway-%s" .Release.Name .Values.upgrade.gatewayClassName) | quote }}
port: 80
{{- else -}}
name: {{ printf "%s-serve-svc" .Release.Name | quote }}
port: 8000
{{- end }}
{{- end }}

{{/* Name of the Gateway whose pods call the service; empty if it is not in this namespace. */}}
{{- define "rerank.callingGateway" -}}
{{- if eq .Values.upgrade.type "NewClusterWithIncrementalUpgrade" -}}
{{ .Release.Name }}-gateway
{{- else if and .Values.gateway.enabled (not .Values.gateway.parent) -}}
{{ .Release.Name }}
{{- end }}
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
