{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* Labels of every object. Argument: the root, or (dict "root" $ "component" "agent"). */}}
{{- define "sidetrack.labels" -}}
{{- $root := .root -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: sidetrack
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end -}}

{{/* What selects a component's pods: it can never change. Argument: the component. */}}
{{- define "sidetrack.selector" -}}
app.kubernetes.io/name: sidetrack
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* An image. Argument: (dict "root" $ "name" "sidetrackd" "digest" …). */}}
{{- define "sidetrack.image" -}}
{{- $images := .root.Values.images -}}
{{- $repository := printf "%s/%s" (trimSuffix "/" $images.registry) .name -}}
{{- if .digest -}}
{{ $repository }}@{{ .digest }}
{{- else -}}
{{ $repository }}:{{ $images.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}
