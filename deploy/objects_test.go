// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	kubernetes "k8s.io/client-go/kubernetes/scheme"

	"github.com/sidetrack-dev/sidetrack/deploy"
)

// decode reads YAML documents into the API's types and refuses fields that these
// do not have. Kinds of other people's APIs are left out.
func decode(t *testing.T, text []byte) []runtime.Object {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{kubernetes.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var objects []runtime.Object
	for docs := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text))); ; {
		doc := make([]byte, 1<<20)
		n, err := docs.Read(doc)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		doc = doc[:n]
		var kind metav1.TypeMeta
		if err := utilyaml.Unmarshal(doc, &kind); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if kind.Kind == "" || strings.HasPrefix(kind.APIVersion, "monitoring.coreos.com/") || strings.HasPrefix(kind.APIVersion, "apiregistration.k8s.io/") {
			continue
		}
		object, _, err := decoder.Decode(doc, nil, nil)
		if err != nil {
			t.Errorf("%v in\n%s", err, doc)
			continue
		}
		objects = append(objects, object)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func one[T any](t *testing.T, objects []runtime.Object) *T {
	t.Helper()
	for _, o := range objects {
		if found, ok := o.(any).(*T); ok {
			return found
		}
	}
	t.Fatalf("there is no %T", *new(T))
	return nil
}

func TestWhatIsRenderedIsStrictlyWhatKubernetesKnows(t *testing.T) {
	for name, least := range map[string]int{"install.yaml": 20, "uninstall.yaml": 1} {
		objects := decode(t, read(t, name))
		if len(objects) < least {
			t.Errorf("%s has %d objects", name, len(objects))
		}
		for _, o := range objects {
			meta := o.(metav1.Object)
			if kind := o.GetObjectKind().GroupVersionKind().Kind; kind != "CustomResourceDefinition" && meta.GetLabels()["app.kubernetes.io/name"] != "sidetrack" {
				t.Errorf("%s: %s %s has no label that says whose it is", name, kind, meta.GetName())
			}
		}
	}
}

func TestTheAgentHasNoMoreThanIsListed(t *testing.T) {
	agent := one[appsv1.DaemonSet](t, decode(t, read(t, "install.yaml")))
	pod := agent.Spec.Template.Spec
	if len(pod.Containers) != 1 || len(pod.InitContainers) != 0 {
		t.Fatal("the agent is one container")
	}
	c := pod.Containers[0]
	yes, no, root := true, false, int64(0)
	if diff := cmp.Diff(&corev1.SecurityContext{
		Privileged:               &no,
		AllowPrivilegeEscalation: &no,
		ReadOnlyRootFilesystem:   &yes,
		RunAsUser:                &root,
		Capabilities: &corev1.Capabilities{
			Drop: []corev1.Capability{"ALL"},
			Add:  []corev1.Capability{"SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE"},
		},
	}, c.SecurityContext); diff != "" {
		t.Errorf("its security context (-want +got):\n%s", diff)
	}
	if pod.SecurityContext.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Error("it is not under the runtime's seccomp profile")
	}
	if len(c.Ports) != 0 {
		t.Errorf("it declares ports %v, so the next one cannot run beside it", c.Ports)
	}
	if c.LivenessProbe != nil || c.ReadinessProbe.Exec == nil || c.StartupProbe.Exec == nil {
		t.Error("its probes are not all of the agent's own socket")
	}
	if r := agent.Spec.UpdateStrategy.RollingUpdate; r.MaxSurge.String() != "1" || r.MaxUnavailable.String() != "0" {
		t.Errorf("it is replaced with maxSurge %s and maxUnavailable %s: nobody would take over", r.MaxSurge, r.MaxUnavailable)
	}
	if !pod.HostNetwork || !pod.HostPID || pod.HostIPC {
		t.Error("it wants the host's network and processes, and nothing else of the host")
	}
	if !slices.ContainsFunc(pod.Tolerations, func(x corev1.Toleration) bool { return x == corev1.Toleration{Operator: corev1.TolerationOpExists} }) {
		t.Error("some nodes have no agent")
	}
	if c.Resources.Requests.Cpu().IsZero() || c.Resources.Requests.Memory().IsZero() || c.Resources.Limits.Memory().IsZero() || !c.Resources.Limits.Cpu().IsZero() {
		t.Errorf("its resources are %v", c.Resources)
	}

	got := map[string]bool{} // host path -> writable
	for _, v := range pod.Volumes {
		if v.HostPath == nil {
			continue
		}
		for _, m := range c.VolumeMounts {
			if m.Name == v.Name {
				got[v.HostPath.Path] = !m.ReadOnly
			}
			if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
				t.Errorf("%s: what is mounted there would show on the host", m.MountPath)
			}
		}
	}
	want := map[string]bool{"/sys/fs/bpf": true, "/sys/fs/cgroup": false, "/run/sidetrack": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what it has of the host's files (-want +got):\n%s", diff)
	}
}

func TestTheControllersAndTheLedgersPodsAreRestricted(t *testing.T) {
	deployments := 0
	for _, o := range decode(t, read(t, "install.yaml")) {
		if d, ok := o.(*appsv1.Deployment); ok {
			deployments++
			t.Run(d.Name, func(t *testing.T) { restricted(t, &d.Spec.Template.Spec) })
		}
	}
	if deployments != 2 {
		t.Errorf("there are %d Deployments, want the controller's and the ledger's", deployments)
	}
}

func restricted(t *testing.T, pod *corev1.PodSpec) {
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.Volumes) != 0 {
		t.Error("it has something of the host")
	}
	if s := pod.SecurityContext; !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("its security context: %v", s)
	}
	yes, no := true, false
	if diff := cmp.Diff(&corev1.SecurityContext{
		Privileged:               &no,
		AllowPrivilegeEscalation: &no,
		ReadOnlyRootFilesystem:   &yes,
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}, pod.Containers[0].SecurityContext); diff != "" {
		t.Errorf("its container's (-want +got):\n%s", diff)
	}
}

// TestNobodyMayReadSecretsOrEverything reads the roles for what must never be in
// them. What is in them is tried on a real API server.
func TestNobodyMayReadSecretsOrEverything(t *testing.T) {
	check := func(name string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			for _, list := range [][]string{r.APIGroups, r.Resources, r.Verbs} {
				if slices.Contains(list, "*") {
					t.Errorf("%s may do everything: %v", name, r)
				}
			}
			for _, resource := range []string{"secrets", "configmaps", "pods/exec", "serviceaccounts/token", "clusterroles", "roles"} {
				if slices.Contains(r.Resources, resource) {
					t.Errorf("%s: %s is none of its business", name, resource)
				}
			}
			for _, verb := range []string{"escalate", "bind", "impersonate"} {
				if slices.Contains(r.Verbs, verb) {
					t.Errorf("%s may %s", name, verb)
				}
			}
			if strings.HasPrefix(name, "sidetrack-agent") {
				for _, verb := range r.Verbs {
					if (verb != "list" && verb != "watch" && verb != "get") && !slices.ContainsFunc(r.Resources, func(s string) bool {
						return strings.HasPrefix(s, "nodestates") || s == "nodes/answers" || s == "nodes/traces"
					}) {
						t.Errorf("the agent may %s %v", verb, r.Resources)
					}
				}
			}
			if strings.HasPrefix(name, "sidetrack-edit") && slices.ContainsFunc(r.Resources, func(s string) bool { return strings.Contains(s, "/") }) {
				t.Errorf("users may write %v", r.Resources)
			}
		}
	}
	n := 0
	for _, o := range decode(t, read(t, "install.yaml")) {
		switch role := o.(type) {
		case *rbacv1.ClusterRole:
			check(role.Name, role.Rules)
			n++
		case *rbacv1.Role:
			check(role.Name, role.Rules)
			n++
		}
	}
	if n < 5 {
		t.Errorf("there are %d roles", n)
	}
}

func TestTheImagesAreThoseThatAreBuilt(t *testing.T) {
	registry, tag, err := deploy.Images()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, name := range []string{"install.yaml", "uninstall.yaml"} {
		for line := range strings.Lines(string(read(t, name))) {
			if image, ok := strings.CutPrefix(strings.TrimSpace(line), "image: "); ok {
				got[image] = true
			}
		}
	}
	want := map[string]bool{registry + "/sidetrackd:" + tag: true, registry + "/sidetrack-controller:" + tag: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
}
