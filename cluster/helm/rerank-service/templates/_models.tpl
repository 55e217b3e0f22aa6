{{/* A model's entry of files/models.yaml, which `rerank-service config` wrote; null for other models. Takes
     (dict "root" $ "model" $model). */}}
{{- define "rerank.known" -}}
{{- $catalogue := .root.Files.Get "files/models.yaml" | fromYaml }}
{{- toYaml (get $catalogue .model.name | default dict) }}
{{- end }}

{{/* Name of the model's Serve application and worker group. */}}
{{- define "rerank.application" -}}
{{- $known := include "rerank.known" . | fromYaml }}
{{- .model.application | default $known.application | required (printf "models: %s is not a name of `rerank-service models`: set its application and config" .model.name) }}
{{- end }}

{{/* The model's settings, as `rerank-service config` writes them, with this release's hardware and replicas. */}}
{{- define "rerank.model" -}}
{{- $known := include "rerank.known" . | fromYaml }}
{{- $application := include "rerank.application" . }}
{{- $settings := dict }}
{{- $replica := dict "num_cpus" (.model.cpus | default (ternary 4 1 (hasKey .model "gpu"))) }}
{{- if .model.gpu }}
{{- $settings = $known.cuda | default (dict "engine" (dict "device" "cuda")) }}
{{- $_ := set $replica "num_gpus" (.model.gpu.perReplica | default 1) }}
{{- $_ := set $replica "tokeniser_threads" (max 1 (sub (int $replica.num_cpus) 1)) }}
{{- $_ := set $replica "resources" (dict (printf "rerank:%s" $application) 0.001) }}
{{- if dig "limits" "request_timeout_s" "" .root.Values.config }}
{{- /* A model's application does not see `limits`; a replaced replica must finish its requests. */}}
{{- $_ := set $replica "graceful_shutdown_timeout_s" (add (include "rerank.requestTimeout" .root | int) 15) }}
{{- end }}
{{- else }}
{{- $settings = $known.cpu | default dict }}
{{- end }}
{{- $bounds := dict "min_replicas" .model.replicas.min "max_replicas" .model.replicas.max }}
{{- $settings = mergeOverwrite $settings (dict "replica" $replica "autoscaling" $bounds) }}
{{- with .model.dtype }}
{{- $settings = mergeOverwrite $settings (dict "engine" (dict "dtype" .)) }}
{{- end }}
{{- toYaml (mergeOverwrite $settings (.model.config | default dict)) }}
{{- end }}

{{/* Number of replicas that the GPUs of one worker hold: a replica uses whole GPUs, or a fraction of one. */}}
{{- define "rerank.replicasPerWorker" -}}
{{- $perReplica := .model.gpu.perReplica | default 1 | float64 }}
{{- if le $perReplica 1.0 -}}
{{ mul .model.gpu.count (divf 1 $perReplica | floor | int) }}
{{- else -}}
{{ divf .model.gpu.count $perReplica | floor | int }}
{{- end }}
{{- end }}

{{/* Fewest and most workers of a model on GPUs. */}}
{{- define "rerank.workers" -}}
{{- $perWorker := include "rerank.replicasPerWorker" . | int }}
min: {{ divf .model.replicas.min $perWorker | ceil | int }}
max: {{ divf .model.replicas.max $perWorker | ceil | int }}
{{- end }}

{{/* The Serve configuration. Each model on GPUs is an application of its own: changing one does not restart the others. */}}
{{- define "rerank.serveConfig" -}}
{{- $root := . }}
{{- $timeout := include "rerank.requestTimeout" . | int }}
{{- $applications := list }}
{{- $models := list }}
{{- range .Values.models }}
{{- $settings := include "rerank.model" (dict "root" $root "model" .) | fromYaml }}
{{- if .gpu }}
{{- $name := include "rerank.application" (dict "root" $root "model" .) }}
{{- $applications = append $applications (dict "name" $name "route_prefix" nil "import_path" "rerank_service.app:build_model" "args" $settings) }}
{{- $settings = merge (dict "application" $name) $settings }}
{{- end }}
{{- $models = append $models $settings }}
{{- end }}
{{- $ingress := dict "min_replicas" .Values.http.replicas.min "max_replicas" .Values.http.replicas.max "num_cpus" .Values.http.cpus }}
{{- $args := dict "models" $models "service" (dict "default_model" (first $models).id "ingress" $ingress) }}
{{- if .Values.auth.keysSecret }}
{{- $_ := set $args "auth" (dict "key_hashes_file" "/etc/rerank-service/key-hashes") }}
{{- end }}
{{- $args = mergeOverwrite $args (deepCopy .Values.config) }}
{{- $applications = append $applications (dict "name" "rerank" "route_prefix" "/" "import_path" "rerank_service.app:build_app" "args" $args) -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  request_timeout_s: {{ add $timeout 15 }} # above limits.request_timeout_s, so that the service answers first
logging_config:
  encoding: JSON
  log_level: INFO
applications:
  {{- range $applications }}
  - name: {{ .name | quote }}
    route_prefix: {{ .route_prefix | default "null # called only by the ingress below" }}
    import_path: {{ .import_path }}
    args:
      {{- toYaml .args | nindent 6 }}
  {{- end }}
{{- end }}

{{/* Components that read from buckets, as a JSON list: Ray's pods if a model's source is a bucket, or the pods that fetch a
     model from one into the volume. */}}
{{- define "rerank.readsBuckets" -}}
{{- $root := . }}
{{- $components := list }}
{{- range .Values.models }}
{{- $model := dict "root" $root "model" . }}
{{- if regexMatch "^(s3|gs)://" (include "rerank.folder" $model) }}
{{- $components = concat $components (list "ray" "pull") }}
{{- else if and $root.Values.volume.enabled (regexMatch "^(s3|gs)://" (.pull | default "")) }}
{{- $components = append $components (ternary "pull" "ray" (eq $root.Values.volume.pull "job")) }}
{{- end }}
{{- end }}
{{- $components | default (list "ray" "pull") | uniq | toJson }}
{{- end }}
