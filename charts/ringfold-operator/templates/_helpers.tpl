{{/* Name of the objects. */}}
{{- define "ringfold-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if eq .Release.Name "ringfold" }}
{{- "ringfold-operator" }}
{{- else if contains "ringfold-operator" .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-ringfold-operator" .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that never change. The name is fixed: the nodes' NetworkPolicies let it in. */}}
{{- define "ringfold-operator.selectorLabels" -}}
app.kubernetes.io/name: ringfold-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ringfold-operator.commonLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: ringfold
{{- end }}

{{- define "ringfold-operator.labels" -}}
{{ include "ringfold-operator.selectorLabels" . }}
{{ include "ringfold-operator.commonLabels" . }}
{{- end }}

{{- define "ringfold-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.name }}
{{- .Values.serviceAccount.name }}
{{- else if .Values.serviceAccount.create }}
{{- include "ringfold-operator.fullname" . }}
{{- else }}
{{- "default" }}
{{- end }}
{{- end }}

{{/* An image's whole name. Takes image and root. */}}
{{- define "ringfold-operator.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Every pod of this chart meets the restricted Pod Security standard. */}}
{{- define "ringfold-operator.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "ringfold-operator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the operator reads, the same in its pods and in the test's. */}}
{{- define "ringfold-operator.env" -}}
- name: RINGFOLD_OPERATOR_IDENTITY
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: RINGFOLD_OPERATOR_LEASE_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: RINGFOLD_OPERATOR_LEASE_NAME
  value: {{ include "ringfold-operator.fullname" . }}
- name: RINGFOLD_OPERATOR_NODE_IMAGE
  value: {{ include "ringfold-operator.image" (dict "image" .Values.nodeImage "root" .) | quote }}
{{- with .Values.watchNamespaces }}
- name: RINGFOLD_OPERATOR_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: RINGFOLD_OPERATOR_HTTP_LISTEN
  value: 0.0.0.0:2603
- name: RINGFOLD_OPERATOR_LOG_LEVEL
  value: {{ .Values.logLevel | quote }}
{{- end }}

{{/*
What the operator calls, and nothing else: the same in its ClusterRole and in its Roles. Secrets are
read one at a time by name, never listed or watched. The finalizers' rule is for API servers that ask
for it before an owner reference may hold its owner back (OwnerReferencesPermissionEnforcement).
*/}}
{{- define "ringfold-operator.rules" -}}
- apiGroups: [ringfold.dev]
  resources: [eventstoreclusters]
  verbs: [get, list, watch]
- apiGroups: [ringfold.dev]
  resources: [eventstoreclusters/status]
  verbs: [patch]
- apiGroups: [ringfold.dev]
  resources: [eventstoreclusters/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [list, watch, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, update, patch]
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
