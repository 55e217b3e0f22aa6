{{/* One worker group: (dict "root" $ "name" NAME "min" N "max" N "worker" {cpu, memory} "models" [...] "gpu" {...}), with an
     empty `gpu` for the group of the models without GPUs. */}}
{{- define "rerank.workerGroup" -}}
{{- $gpu := .gpu -}}
groupName: {{ .name | quote }}
replicas: {{ .min }}
minReplicas: {{ .min }}
maxReplicas: {{ .max }}
resources: # what Ray counts as a worker's resources
  CPU: {{ .worker.cpu | quote }}
  {{- if $gpu }}
  GPU: {{ $gpu.count | default 1 | quote }}
  rerank:{{ .name }}: "1" # places the model's replicas on this group
  {{- end }}
{{- with $gpu.type }}
labels:
  ray.io/accelerator-type: {{ . | quote }}
{{- end }}
rayStartParams:
  object-store-memory: "536870912"
template:
  metadata:
    labels:
      {{- include "rerank.rayLabels" .root | nindent 6 }}
      rerank-service/group: {{ .name | quote }}
    {{- with include "rerank.environmentAnnotation" .root }}
    {{- . | nindent 4 }}
    {{- end }}
  spec:
    {{- include "rerank.workerSpec" . | nindent 4 }}
{{- end }}

{{- define "rerank.workerSpec" -}}
{{- $root := .root }}
{{- $gpu := .gpu }}
{{- $deadline := include "rerank.drainDeadline" $root | int -}}
# Must exceed the time of preStop plus the 30 s that Ray itself takes. An ingress has 50 s more than a request to finish
# its requests, and replacements have the rest to start.
terminationGracePeriodSeconds: {{ add $deadline 60 }}
{{- with $root.Values.workers.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  {{- include "rerank.podSecurity" $root | nindent 2 }}
{{- with include "rerank.pullSecrets" $root }}
{{- . | nindent 0 }}
{{- end }}
automountServiceAccountToken: {{ not (empty $root.Values.serviceAccount.name) }}
{{- with $root.Values.serviceAccount.name }}
serviceAccountName: {{ . | quote }}
{{- end }}
{{- with merge (dict) ($gpu.nodeSelector | default dict) $root.Values.workers.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  {{- include "rerank.nodeFailure" $root | nindent 2 }}
  {{- if $gpu }}
  {{- include "rerank.gpuToleration" $root | nindent 2 }}
  {{- end }}
  {{- with $root.Values.workers.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with dig "spread" "" (first .models) }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: {{ . | quote }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "rerank.rayLabels" $root | nindent 8 }}
        rerank-service/group: {{ $.name | quote }}
{{- end }}
{{- with include "rerank.initContainers" . | trim }}
initContainers:
  {{- . | nindent 2 }}
{{- end }}
containers:
  - name: ray-worker
    image: {{ include "rerank.image" $root }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    env:
      {{- include "rerank.env" $root | nindent 6 }}
      {{- if $root.Values.volume.enabled }}
      - name: HF_HOME # on the volume, so files from the hub are fetched once for all workers
        value: /models/hub
      {{- end }}
      {{- if hasPrefix "redis" (dig "rate_limits" "storage" "" $root.Values.config) }}
      - name: RERANK_SERVICE_REDIS_PASSWORD # rate_limits.storage_password_env
        valueFrom:
          secretKeyRef:
            name: {{ $root.Values.gcs.redis.passwordSecret | quote }}
            key: password
      {{- end }}
      {{- if not $gpu }}
      - name: NVIDIA_VISIBLE_DEVICES
        value: void
      {{- end }}
      {{- range $name, $value := $root.Values.workers.env }}
      - name: {{ $name | quote }}
        value: {{ $value | quote }}
      {{- end }}
    envFrom:
      {{- include "rerank.envFrom" $root | nindent 6 }}
    lifecycle:
      preStop: # moves the replicas to other workers and lets their requests finish
        exec:
          command: [bash, -c, rerank-service drain --this-node --force --deadline-s {{ $deadline }}]
    ports:
      - name: metrics
        containerPort: 8080
      - name: haproxy-metrics
        containerPort: 9101
      - name: serve
        containerPort: 8000
    {{- range $probe, $failures := dict "startupProbe" 60 "livenessProbe" 24 }}
    {{ $probe }}:
      exec:
        command:
          - bash
          - -c
          {{- if and (eq $probe "livenessProbe") (dig "healthProbe" false $gpu) }}
          - >- # if the GPU does not answer, KubeRay makes a new pod, and the device plugin offers no GPU that it found faulty
            wget -q -T 2 -O- http://localhost:52365/api/local_raylet_healthz | grep -q success &&
            timeout 15 nvidia-smi --query-gpu=uuid --format=csv,noheader | grep -q ^GPU-
      periodSeconds: 30
      timeoutSeconds: 20
      failureThreshold: 4
          {{- else }}
          - wget -q -T 2 -O- http://localhost:52365/api/local_raylet_healthz | grep -q success
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: {{ $failures }}
          {{- end }}
    {{- end }}
    readinessProbe: # a worker without a replica has no proxy and never becomes ready, which does no harm
      exec:
        command:
          - bash
          - -c
          - >-
            wget -q -T 2 -O- http://localhost:52365/api/local_raylet_healthz | grep -q success &&
            wget -q -T 2 -O- http://localhost:8000/-/healthz | grep -q success
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: 2
    resources:
      requests:
        cpu: {{ .worker.cpu | quote }}
        memory: {{ .worker.memory }}
        {{- with $gpu }}
        {{ .resource | default "nvidia.com/gpu" }}: {{ .count | default 1 | quote }}
        {{- end }}
      limits:
        memory: {{ .worker.memory }}
        {{- with $gpu }}
        {{ .resource | default "nvidia.com/gpu" }}: {{ .count | default 1 | quote }}
        {{- end }}
    securityContext:
      {{- include "rerank.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      {{- include "rerank.mounts" $root | nindent 6 }}
      {{- if $root.Values.volume.enabled }}
      - name: models
        mountPath: /models
      {{- end }}
volumes:
  {{- include "rerank.volumes" $root | nindent 2 }}
  {{- if $root.Values.volume.enabled }}
  - name: models
    persistentVolumeClaim:
      claimName: {{ include "rerank.claim" $root | quote }}
  {{- end }}
{{- end }}

{{/* Containers that run before Ray: with `pull: init`, each fetches a model; with `pull: job`, each waits for the job. */}}
{{- define "rerank.initContainers" -}}
{{- $root := .root }}
{{- $pull := ternary $root.Values.volume.pull "none" $root.Values.volume.enabled }}
{{- range .models }}
{{- $model := dict "root" $root "model" . }}
{{- $container := include "rerank.pullContainer" $model }}
{{- if and $container (eq $pull "init") }}
# A repeated run checks the files and fetches only missing or damaged ones.
- {{ $container | nindent 2 | trim }}
{{- else if and $container (eq $pull "job") }}
- name: wait-for-{{ include "rerank.application" $model }}
  image: {{ include "rerank.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: [bash, -c, "until test -d {{ include "rerank.folder" $model }}; do sleep 5; done"] # complete once it is there
  resources:
    requests:
      cpu: 10m
      memory: 16Mi
    limits:
      memory: 64Mi
  securityContext:
    {{- include "rerank.containerSecurity" $root | nindent 4 }}
  volumeMounts:
    - name: models
      mountPath: /models
{{- end }}
{{- end }}
{{- end }}

{{/* The folder on the volume with a model's files; another source if the model is not on the volume. */}}
{{- define "rerank.folder" -}}
{{- dig "checkpoint" "source" "" (include "rerank.model" . | fromYaml) }}
{{- end }}

{{/* The container that fetches a model's files into the volume; empty if nothing is to be fetched. */}}
{{- define "rerank.pullContainer" -}}
{{- $known := include "rerank.known" . | fromYaml }}
{{- $from := ternary .model.pull $known.pull (hasKey .model "pull") }}
{{- $folder := include "rerank.folder" . }}
{{- if and $from (hasPrefix "/models/" $folder) -}}
name: pull-{{ include "rerank.application" . }}
image: {{ include "rerank.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [rerank-service, pull, {{ $from | quote }}, --to, {{ $folder | quote }}]
env:
  {{- include "rerank.env" .root | nindent 2 }}
  - name: NVIDIA_VISIBLE_DEVICES
    value: void
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.volume.hubSecret | quote }}
        key: token
        optional: true
resources:
  requests:
    cpu: "1"
    memory: 1Gi
  limits:
    memory: 2Gi
securityContext:
  {{- include "rerank.containerSecurity" .root | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: models
    mountPath: /models
{{- end }}
{{- end }}
