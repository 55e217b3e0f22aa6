{{/* Refuses values that values.schema.json cannot: relations between values, and the release's name. */}}
{{- define "rerank.checks" -}}
{{- if or (gt (len .Release.Name) 46) (not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name)) }}
{{- /* KubeRay allows 47. The pods of the StatefulSet RELEASE-redis have a label with this name and 11 more characters. */}}
{{- fail (printf "the release's name %s must have at most 46 characters: a to z, 0 to 9 and -, the first one a letter" .Release.Name) }}
{{- end }}
{{- $names := list "rerank" "headgroup" "cpu" }}
{{- include "rerank.checkBounds" (dict "name" "http.replicas" "bounds" .Values.http.replicas) }}
{{- include "rerank.checkBounds" (dict "name" "cpuWorkers.replicas" "bounds" .Values.cpuWorkers.replicas) }}
{{- $root := . }}
{{- range .Values.models }}
{{- $model := dict "root" $root "model" . }}
{{- include "rerank.checkBounds" (dict "name" (printf "replicas of the model %s" .name) "bounds" .replicas) }}
{{- $settings := include "rerank.model" $model | fromYaml }}
{{- if not (and $settings.id (dig "checkpoint" "source" "" $settings)) }}
{{- fail (printf "models: %s is not a name of `rerank-service models`: set config.id and config.checkpoint.source" .name) }}
{{- end }}
{{- $name := include "rerank.application" $model }}
{{- if has $name $names }}
{{- fail (printf "models: the application %s of %s is another model's, or reserved (rerank, headgroup, cpu): set another" $name .name) }}
{{- end }}
{{- $names = append $names $name }}
{{- if .gpu }}
{{- include "rerank.checkWorker" $model }}
{{- else if gt (float64 $settings.replica.num_cpus) (float64 $root.Values.cpuWorkers.cpu) }}
{{- fail (printf "models: a replica of %s needs %v CPUs, and cpuWorkers.cpu is %v" .name $settings.replica.num_cpus $root.Values.cpuWorkers.cpu) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rerank.checkBounds" -}}
{{- if gt (int .bounds.min) (int .bounds.max) }}
{{- fail (printf "%s: min %d is above max %d" .name (int .bounds.min) (int .bounds.max)) }}
{{- end }}
{{- end }}

{{/* Whether a worker of a model on GPUs has the CPUs and GPUs that the replicas on its GPUs need. */}}
{{- define "rerank.checkWorker" -}}
{{- $perReplica := .model.gpu.perReplica | default 1 | float64 }}
{{- if gt $perReplica (float64 .model.gpu.count) }}
{{- fail (printf "models: a replica of %s needs %v GPUs, and a worker has %v (gpu.count)" .model.name $perReplica .model.gpu.count) }}
{{- end }}
{{- if and (gt $perReplica 1.0) (ne $perReplica (floor $perReplica)) }}
{{- fail (printf "models: gpu.perReplica of %s must be a whole number above 1, or at most 1" .model.name) }}
{{- end }}
{{- $settings := include "rerank.model" . | fromYaml }}
{{- $cpus := mulf (include "rerank.replicasPerWorker" . | int) $settings.replica.num_cpus }}
{{- if gt (float64 $cpus) (float64 .model.worker.cpu) }}
{{- fail (printf "models: a worker of %s has GPUs for %s replicas, which need %v CPUs, and worker.cpu is %v: raise it, or lower cpus" .model.name (include "rerank.replicasPerWorker" .) $cpus .model.worker.cpu) }}
{{- end }}
{{- end }}
