{{/* Name of the EventStoreCluster. */}}
{{- define "ringfold-cluster.name" -}}
{{- $name := .Values.name | default .Release.Name -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$" $name) }}
{{- fail (printf "the cluster's name %q must be 1 to 40 lower-case letters, digits and dashes, beginning with a letter: set `name`" $name) }}
{{- end }}
{{- $name }}
{{- end }}

{{- define "ringfold-cluster.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: ringfold
{{- end }}

{{/* An image's whole name. Takes image and root. */}}
{{- define "ringfold-cluster.image" -}}
{{- $registry := .image.registry | default .root.Values.global.imageRegistry -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/*
The map without what is null or empty, as YAML: what says nothing is not said, so that the resource's
own default counts, and `replicas` belongs to whoever scales. false and 0 stay. (Most versions of Helm
drop a null themselves, not all.)
*/}}
{{- define "ringfold-cluster.said" -}}
{{- $said := dict }}
{{- range $name, $value := . }}
{{- if kindIs "map" $value }}
{{- $inner := include "ringfold-cluster.said" $value | fromYaml }}
{{- if $inner }}{{ $_ := set $said $name $inner }}{{ end }}
{{- else if kindIs "slice" $value }}
{{- if $value }}{{ $_ := set $said $name $value }}{{ end }}
{{- else if kindIs "invalid" $value }}
{{- else }}
{{- $_ := set $said $name $value }}
{{- end }}
{{- end }}
{{- toYaml $said }}
{{- end }}

{{/* The resource's spec: all values but the chart's own. Amounts of resources are texts in it. */}}
{{- define "ringfold-cluster.spec" -}}
{{- $spec := omit (deepCopy .Values) "name" "labels" "annotations" "metrics" "tests" "global" "enabled" }}
{{- range $kind := list "requests" "limits" }}
{{- $amounts := dig "resources" $kind dict $spec }}
{{- range $name, $amount := $amounts }}
{{- if not (kindIs "invalid" $amount) }}{{ $_ := set $amounts $name (toString $amount) }}{{ end }}
{{- end }}
{{- end }}
{{- include "ringfold-cluster.said" $spec }}
{{- end }}
