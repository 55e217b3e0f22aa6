{{/* What all Ray pods share: the pods satisfy the level `restricted` of Kubernetes' Pod Security Standards, and write
     only to emptyDirs. */}}
{{- define "rerank.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "rerank.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* On a node that fails silently, a pod is deleted after 30 s instead of 300 s. */}}
{{- define "rerank.nodeFailure" -}}
- key: node.kubernetes.io/not-ready
  operator: Exists
  effect: NoExecute
  tolerationSeconds: 30
- key: node.kubernetes.io/unreachable
  operator: Exists
  effect: NoExecute
  tolerationSeconds: 30
{{- end }}

{{- define "rerank.gpuToleration" -}}
- key: nvidia.com/gpu
  operator: Exists
  effect: NoSchedule
{{- end }}

{{/* Variables that a container needs itself; the ConfigMap has those of Ray. KubeRay's own init container gets these. */}}
{{- define "rerank.env" -}}
- name: HOME # Ray and Python write small files there
  value: /tmp
{{- end }}

{{- define "rerank.envFrom" -}}
- configMapRef:
    name: {{ .Release.Name }}-ray-environment
{{- end }}

{{- define "rerank.mounts" -}}
- name: shared-memory
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
- name: cache # compiled kernels
  mountPath: /cache
{{- if .Values.auth.keysSecret }}
- name: keys
  mountPath: /etc/rerank-service
  readOnly: true
{{- end }}
{{- end }}

{{- define "rerank.volumes" -}}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: 1Gi
- name: tmp # Ray's sessions and logs
  emptyDir: {}
- name: cache
  emptyDir: {}
{{- with .Values.auth.keysSecret }}
- name: keys
  secret:
    secretName: {{ . | quote }} # a change of the entry key-hashes applies without a restart
{{- end }}
{{- end }}

{{- define "rerank.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "rerank.headSpec" -}}
terminationGracePeriodSeconds: 120
{{- with .Values.head.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
securityContext:
  {{- include "rerank.podSecurity" . | nindent 2 }}
{{- with include "rerank.pullSecrets" . }}
{{- . | nindent 0 }}
{{- end }}
{{- with .Values.head.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
  {{- include "rerank.nodeFailure" . | nindent 2 }}
  {{- with .Values.head.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- if include "rerank.ownRedis" . }}
affinity:
  podAntiAffinity: # the loss of one node must not take both the head and the store of its state
    {{- $apart := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "rerank.redisLabels" . | fromYaml)) }}
    {{- if eq .Values.head.antiAffinity "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      {{- toYaml (list $apart) | nindent 6 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      {{- toYaml (list (dict "weight" 100 "podAffinityTerm" $apart)) | nindent 6 }}
    {{- end }}
{{- end }}
containers:
  - name: ray-head
    image: {{ include "rerank.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    env:
      {{- include "rerank.env" . | nindent 6 }}
      - name: NVIDIA_VISIBLE_DEVICES # no GPU, even if NVIDIA's runtime is the node's default
        value: void
    envFrom:
      {{- include "rerank.envFrom" . | nindent 6 }}
    ports:
      - name: gcs-server
        containerPort: 6379
      - name: dashboard
        containerPort: 8265
      - name: metrics
        containerPort: 8080
      - name: serve # KubeRay reads the port here; the head has no proxy
        containerPort: 8000
    {{- range $probe, $failures := dict "startupProbe" 60 "livenessProbe" 24 "readinessProbe" 3 }}
    {{ $probe }}:
      exec:
        command:
          - bash
          - -c
          - >-
            wget -q -T 2 -O- http://localhost:52365/api/local_raylet_healthz | grep -q success &&
            wget -q -T 2 -O- http://localhost:8265/api/gcs_healthz | grep -q success
      periodSeconds: 5
      timeoutSeconds: 5
      failureThreshold: {{ $failures }}
    {{- end }}
    resources:
      requests:
        cpu: {{ .Values.head.cpu | quote }}
        memory: {{ .Values.head.memory }}
      limits:
        memory: {{ .Values.head.memory }}
    securityContext:
      {{- include "rerank.containerSecurity" . | nindent 6 }}
    volumeMounts:
      {{- include "rerank.mounts" . | nindent 6 }}
volumes:
  {{- include "rerank.volumes" . | nindent 2 }}
{{- end }}
