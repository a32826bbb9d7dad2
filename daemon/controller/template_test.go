// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

func parse[T any](t *testing.T, text string) T {
	t.Helper()
	var out T
	if err := yaml.UnmarshalStrict([]byte(text), &out); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return out
}

func asYAML(t *testing.T, v any) string {
	t.Helper()
	text, err := yaml.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func patchOf(t *testing.T, text string) *runtime.RawExtension {
	t.Helper()
	j, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return &runtime.RawExtension{Raw: j}
}

var someID = forkID{sandbox: "pr-42", routingKey: "the-key-of-pr-42", hash: "abcdefghij"}

// ours is what every fork's pods have besides what is tested.
const ours = `
metadata:
  labels:
    app.kubernetes.io/managed-by: sidetrack
    sidetrack.dev/fork: abcdefghij
    sidetrack.dev/sandbox: pr-42
`

const baseline = `
metadata:
  labels: {app: route, tier: web}
  annotations: {note: kept}
spec:
  serviceAccountName: route
  containers:
  - name: app
    image: registry/route:1
    env:
    - {name: LOG, value: info}
    - {name: OLD, value: x}
    ports: [{name: http, containerPort: 8080, protocol: TCP}]
`

func deployment(t *testing.T, template string) *appsv1.Deployment {
	t.Helper()
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "route", Namespace: "shop"},
		Spec:       appsv1.DeploymentSpec{Template: parse[corev1.PodTemplateSpec](t, template)},
	}
}

func TestForkTemplate(t *testing.T) {
	env := func(more string) string {
		return "    env:\n    - {name: SIDETRACK_SANDBOX, value: pr-42}\n    - {name: SIDETRACK_ROUTING_KEY, value: the-key-of-pr-42}\n    - {name: SIDETRACK_BASELINE, value: Deployment/route}\n" + more +
			"    terminationMessagePolicy: FallbackToLogsOnError\n"
	}
	for _, tt := range []struct {
		name     string
		template string
		fork     v1alpha1.Fork
		patch    string
		want     string // of spec; metadata is ours
		notes    []string
	}{
		{
			name:     "all that is not changed is the baseline's",
			template: baseline,
			want: `
  serviceAccountName: route
  containers:
  - name: app
    image: registry/route:1
    ports: [{name: http, containerPort: 8080, protocol: TCP}]
` + env("    - {name: LOG, value: info}\n    - {name: OLD, value: x}\n"),
		},
		{
			name:     "image and env are changed, added and removed",
			template: baseline,
			fork: v1alpha1.Fork{Containers: []v1alpha1.ContainerOverride{{
				Name: "app", Image: "registry/route:pr-42", RemoveEnv: []string{"OLD", "never-there"},
				Env: []corev1.EnvVar{{Name: "LOG", Value: "debug"}, {Name: "NEW", Value: "$(SIDETRACK_SANDBOX)"}},
			}}},
			want: `
  serviceAccountName: route
  containers:
  - name: app
    image: registry/route:pr-42
    ports: [{name: http, containerPort: 8080, protocol: TCP}]
` + env("    - {name: LOG, value: debug}\n    - {name: NEW, value: $(SIDETRACK_SANDBOX)}\n"),
		},
		{
			name:     "the patch comes after the containers' changes, and cannot take over what is ours",
			template: baseline,
			fork:     v1alpha1.Fork{Containers: []v1alpha1.ContainerOverride{{Name: "app", Image: "registry/route:pr-42"}}},
			patch: `
metadata: {labels: {sidetrack.dev/sandbox: other, sidetrack.dev/fork: other}}
spec:
  serviceAccountName: null
  containers:
  - {name: app, image: registry/route:patched, env: [{name: SIDETRACK_ROUTING_KEY, value: stolen}, {name: LOG, $patch: delete}]}
  - {name: extra, image: registry/extra:1}
`,
			want: `
  containers:
  - name: app
    image: registry/route:patched
    ports: [{name: http, containerPort: 8080, protocol: TCP}]
` + env("    - {name: OLD, value: x}\n") + `
  - name: extra
    image: registry/extra:1
` + env(""),
		},
		{
			name: "init containers are overridden and marked as well",
			template: `
spec:
  initContainers: [{name: init, image: init:1}]
  containers: [{name: app, image: app:1}]
`,
			fork: v1alpha1.Fork{Containers: []v1alpha1.ContainerOverride{{Name: "init", Image: "init:2"}}},
			want: `
  initContainers:
  - name: init
    image: init:2
` + env("") + `
  containers:
  - name: app
    image: app:1
` + env(""),
		},
		{
			name: "neither the node's network nor its ports are shared",
			template: `
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers: [{name: app, ports: [{containerPort: 80, hostPort: 80, hostIP: 10.0.0.1}]}]
`,
			want: `
  dnsPolicy: ClusterFirst
  containers:
  - name: app
    ports: [{containerPort: 80, protocol: TCP}]
` + env(""),
			notes: []string{"it has a network of its own, not the node's"},
		},
		{
			name: "a node that the template names is asked for at the scheduler",
			template: `
spec: {nodeName: n1, containers: [{name: app}]}
`,
			want: `
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}]}}}
  containers:
  - name: app
` + env(""),
		},
		{
			name: "a fork pushes nobody out",
			template: `
spec: {priorityClassName: high, priority: 1000, preemptionPolicy: PreemptLowerPriority, containers: [{name: app}]}
`,
			want: `
  containers:
  - name: app
` + env(""),
		},
		{
			name: "what the baseline's pods want of each other is left out, all else is kept",
			template: `
metadata: {labels: {app: route}}
spec:
  containers: [{name: app}]
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: route}}}
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: other}}}
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: host, labelSelector: {matchExpressions: [{key: app, operator: In, values: [route, x]}]}}
      - {topologyKey: host, labelSelector: {matchLabels: {app: noisy}}}
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 1, podAffinityTerm: {topologyKey: host, labelSelector: {matchLabels: {app: route}}}}
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: host, labelSelector: {matchLabels: {app: cache}}}
`,
			want: `
  topologySpreadConstraints:
  - {maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: other}}}
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: host, labelSelector: {matchLabels: {app: noisy}}}
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: host, labelSelector: {matchLabels: {app: cache}}}
  containers:
  - name: app
` + env(""),
		},
		{
			name: "a claim that can be written to stays the baseline's",
			template: `
spec:
  containers:
  - {name: app, volumeMounts: [{name: data, mountPath: /data}, {name: ro, mountPath: /ro, readOnly: true}, {name: conf, mountPath: /conf}]}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: route-data}}
  - {name: ro, persistentVolumeClaim: {claimName: models}}
  - {name: ro2, persistentVolumeClaim: {claimName: models2, readOnly: true}}
  - {name: conf, configMap: {name: route}}
`,
			want: `
  containers:
  - name: app
    volumeMounts: [{name: data, mountPath: /data}, {name: ro, mountPath: /ro, readOnly: true}, {name: conf, mountPath: /conf}]
` + env("") + `
  volumes:
  - {name: data, emptyDir: {}}
  - {name: ro, persistentVolumeClaim: {claimName: models}}
  - {name: ro2, persistentVolumeClaim: {claimName: models2, readOnly: true}}
  - {name: conf, configMap: {name: route}}
`,
			notes: []string{"volume data is empty: the claim route-data stays the baseline's"},
		},
		{
			name: "a folder of the node is shared, and that is said",
			template: `
spec:
  containers: [{name: app, volumeMounts: [{name: cache, mountPath: /cache}, {name: tz, mountPath: /tz, readOnly: true}, {name: tmp, mountPath: /tmp}]}]
  volumes:
  - {name: cache, hostPath: {path: /var/cache/route}}
  - {name: tz, hostPath: {path: /usr/share/zoneinfo}}
  - {name: tmp, emptyDir: {}}
`,
			want: `
  containers:
  - name: app
    volumeMounts: [{name: cache, mountPath: /cache}, {name: tz, mountPath: /tz, readOnly: true}, {name: tmp, mountPath: /tmp}]
` + env("") + `
  volumes:
  - {name: cache, hostPath: {path: /var/cache/route}}
  - {name: tz, hostPath: {path: /usr/share/zoneinfo}}
  - {name: tmp, emptyDir: {}}
`,
			notes: []string{"volume cache is the baseline's own, and both write to it: change it with patch if they must not"},
		},
		{
			name: "a patch gives an emptied volume another source",
			template: `
spec:
  containers: [{name: app, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: route-data}}]
`,
			patch: `spec: {volumes: [{name: data, persistentVolumeClaim: {claimName: pr-42-data}}]}`,
			want: `
  containers:
  - name: app
    volumeMounts: [{name: data, mountPath: /data}]
` + env("") + `
  volumes: [{name: data, persistentVolumeClaim: {claimName: pr-42-data}}]
`,
		},
		{
			name: "a variable that shows a label of the baseline keeps its value",
			template: `
metadata: {labels: {app: "a$b"}}
spec:
  containers:
  - name: app
    env:
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
`,
			want: `
  containers:
  - name: app
` + env("    - {name: APP, value: a$$b}\n    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}\n"),
		},
		{
			name: "what server-side apply cannot take twice is there once",
			template: `
spec:
  containers:
  - name: app
    env: [{name: A, value: first}, {name: B, value: b}, {name: A, value: last}]
    ports: [{name: http, containerPort: 8080}, {name: web, containerPort: 8080}, {containerPort: 8080, protocol: UDP}]
`,
			want: `
  containers:
  - name: app
    ports: [{name: http, containerPort: 8080, protocol: TCP}, {containerPort: 8080, protocol: UDP}]
` + env("    - {name: B, value: b}\n    - {name: A, value: last}\n"),
		},
		{
			name: "a container's own way to say why it ended is kept",
			template: `
spec: {containers: [{name: app, terminationMessagePolicy: FallbackToLogsOnError}]}
`,
			want: `
  containers:
  - name: app
` + env(""),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := readWorkload(v1alpha1.WorkloadRef{Name: "route"}, deployment(t, tt.template))
			if tt.patch != "" {
				tt.fork.Patch = patchOf(t, tt.patch)
			}
			before := asYAML(t, w.template)
			got, refused := forkTemplate(w, tt.fork, someID)
			if refused != nil {
				t.Fatalf("refused: %s", refused.message)
			}
			want := parse[corev1.PodTemplateSpec](t, ours+"spec:"+tt.want)
			if strings.Contains(tt.template, "note: kept") {
				want.Annotations = map[string]string{"note": "kept"}
			}
			if diff := cmp.Diff(simplify(t, want), simplify(t, got.template)); diff != "" {
				t.Errorf("template (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.notes, got.notes, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("notes (-want +got):\n%s", diff)
			}
			if after := asYAML(t, w.template); after != before {
				t.Error("the baseline's template, which is the cache's, has been changed")
			}
		})
	}
}

// simplify makes empty lists and structs equal to missing ones, as the API has
// it.
func simplify(t *testing.T, tpl corev1.PodTemplateSpec) string {
	t.Helper()
	if a := tpl.Spec.Affinity; a != nil && a.PodAntiAffinity != nil && len(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution = nil
	}
	return asYAML(t, tpl)
}

func TestForkTemplateRefusesWhatItCannotDo(t *testing.T) {
	for _, tt := range []struct {
		name, patch string
		containers  []v1alpha1.ContainerOverride
		reason      string
		says        string
	}{
		{"an unknown container", "", []v1alpha1.ContainerOverride{{Name: "web"}}, reasonContainerNotFound, `there is no container "web" in it, it has app: correct the name`},
		{"a field that pods do not have", "spec: {containers: [{name: app, imagee: x}]}", nil, reasonInvalidPatch, `"imagee"`},
		{"a patch one level too high", "template: {spec: {}}", nil, reasonInvalidPatch, "begins with spec or metadata"},
		{"a value of the wrong type", "spec: {containers: app}", nil, reasonInvalidPatch, "patch"},
		{"a list", "[1]", nil, reasonInvalidPatch, "patch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := v1alpha1.Fork{Containers: tt.containers}
			if tt.patch != "" {
				f.Patch = patchOf(t, tt.patch)
			}
			_, refused := forkTemplate(readWorkload(v1alpha1.WorkloadRef{Name: "route"}, deployment(t, baseline)), f, someID)
			if refused == nil || refused.reason != tt.reason || !strings.Contains(refused.message, tt.says) {
				t.Errorf("refusal %+v, want reason %s with %q", refused, tt.reason, tt.says)
			}
		})
	}
}

func TestStatefulSetsForkHasItsOwnVolumesAndName(t *testing.T) {
	three := int32(3)
	o := parse[*appsv1.StatefulSet](t, `
metadata: {name: pg}
spec:
  serviceName: pg
  template:
    metadata: {labels: {app: pg}}
    spec:
      volumes: [{name: data, configMap: {name: overridden-by-the-claim}}]
      containers:
      - name: pg
        env: [{name: ORDINAL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['apps.kubernetes.io/pod-index']"}}}]
        volumeMounts: [{name: data, mountPath: /data}, {name: wal, mountPath: /wal}]
  volumeClaimTemplates:
  - {metadata: {name: data}}
  - {metadata: {name: wal}}
`)
	o.Spec.Replicas = &three
	w := readWorkload(v1alpha1.WorkloadRef{Kind: "StatefulSet", Name: "pg"}, o)
	got, refused := forkTemplate(w, v1alpha1.Fork{}, someID)
	if refused != nil {
		t.Fatal(refused.message)
	}
	want := parse[[]corev1.Volume](t, `[{name: data, emptyDir: {}}, {name: wal, emptyDir: {}}]`)
	if diff := cmp.Diff(want, got.template.Spec.Volumes); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	if got.template.Spec.Hostname != "pg-0" {
		t.Errorf("hostname %q, want pg-0", got.template.Spec.Hostname)
	}
	if e := got.template.Spec.Containers[0].Env; e[len(e)-1].Value != "0" {
		t.Errorf("env %v, want the ordinal 0", e)
	}
	one := labels.SelectorFromSet(labels.Set{"statefulset.kubernetes.io/pod-name": "pg-2"})
	if !w.selectedBy(one) || w.selectedBy(labels.SelectorFromSet(labels.Set{"statefulset.kubernetes.io/pod-name": "pg-3"})) {
		t.Error("a Service of one pod is not told from a Service of none")
	}
}

func TestJobRunsOnce(t *testing.T) {
	cron := parse[*batchv1.CronJob](t, `
metadata: {name: cj}
spec:
  jobTemplate:
    spec:
      backoffLimit: 3
      ttlSecondsAfterFinished: 5
      suspend: true
      manualSelector: true
      selector: {matchLabels: {a: b}}
      template: {metadata: {labels: {app: cj}}, spec: {restartPolicy: Never, containers: [{name: cj, image: x:1}]}}
`)
	ref := v1alpha1.WorkloadRef{Kind: "CronJob", Name: "cj"}
	plan := func(image, override string) (string, *batchv1.Job) {
		cron.Spec.JobTemplate.Spec.Template.Spec.Containers[0].Image = image
		spec := v1alpha1.Fork{Workload: ref}
		if override != "" {
			spec.Containers = []v1alpha1.ContainerOverride{{Name: "cj", Image: override}}
		}
		f := planFork(sandbox("pr-42"), "k", spec, namespaceWith(t, cron))
		if f.refusal != nil {
			t.Fatal(f.refusal.message)
		}
		return f.name, f.object.(*batchv1.Job)
	}
	name, job := plan("x:1", "")
	if s := job.Spec; s.TTLSecondsAfterFinished != nil || s.Suspend != nil || s.Selector != nil || s.ManualSelector != nil || *s.BackoffLimit != 3 {
		t.Errorf("spec %+v", s)
	}
	if again, _ := plan("x:2", ""); again != name {
		t.Error("the job runs again because the baseline has changed")
	}
	if again, _ := plan("x:2", "y:1"); again == name {
		t.Error("the job does not run again though the sandbox has changed")
	}
}

func TestForkOfNothingAndOfAForkAreRefused(t *testing.T) {
	f := planFork(sandbox("pr-42"), "k", v1alpha1.Fork{Workload: v1alpha1.WorkloadRef{Name: "gone"}}, namespaceWith(t, nil))
	if f.refusal == nil || f.refusal.reason != reasonWorkloadNotFound || !f.orphan {
		t.Errorf("%+v", f.refusal)
	}
	d := deployment(t, baseline)
	d.Labels = map[string]string{forkLabel: "x"}
	f = planFork(sandbox("pr-42"), "k", v1alpha1.Fork{Workload: v1alpha1.WorkloadRef{Name: "route"}}, namespaceWith(t, d))
	if f.refusal == nil || f.refusal.reason != reasonUnsupported {
		t.Errorf("%+v", f.refusal)
	}
}

func TestNamesFitAndDiffer(t *testing.T) {
	long := strings.Repeat("very-long.", 20) + "x"
	seen := map[string]bool{}
	for _, what := range []string{"a", "route", long, long + "y", "a.b"} {
		for _, sb := range []string{"s", "pr-42", strings.Repeat("s", 63)} {
			n := objectName(what, sb, shortHash(what, sb))
			if len(n) > maxName || strings.ContainsAny(n, "._") || strings.Contains(n, "--") || seen[n] {
				t.Errorf("name %q of %q and %q", n, what, sb)
			}
			seen[n] = true
		}
	}
	if a, b := newRoutingKey(), newRoutingKey(); a == b || len(a) != 32 || slices.Contains([]string{a, b}, "") {
		t.Errorf("keys %q and %q", a, b)
	}
}
