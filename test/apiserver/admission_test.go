// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// specs are what people write, and which words tell them what is wrong with it.
var specs = []struct {
	name string
	kind string // Sandbox when empty
	spec string // YAML; the object's name is sample unless object says otherwise
	// object replaces all of the object but its kind.
	object string
	// want is in the server's message; empty: the object is accepted.
	want []string
	// notInGo says why Validate cannot see it.
	notInGo string
}{
	{name: "nothing at all", spec: `{}`},
	{name: "no spec", object: `{metadata: {name: sample}}`},
	{name: "everything", spec: `
routingKey: pr-42.Key_with~all
ttl: 1h30m
forks:
- workload: {kind: Deployment, name: route}
  containers:
  - name: route
    image: registry.example/route:pr-42
    env: [{name: LOG_LEVEL, value: debug}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    removeEnv: [TRACE]
  patch: {spec: {terminationGracePeriodSeconds: 1}}
- workload: {kind: StatefulSet, name: route}
- workload: {kind: DaemonSet, name: route}
- workload: {kind: ReplicaSet, name: route}
- workload: {kind: CronJob, name: route}
redirects:
- {from: {service: postgres, port: 5432}, to: {service: postgres-pr-42}}
- {from: {service: postgres, port: metrics}, to: {service: postgres, namespace: other, port: "9187"}, unavailable: Baseline}
- {from: {service: postgres}, to: {address: 10.0.0.9, port: 5432}}
- {from: {service: cache}, to: {address: "2001:db8::9", port: "6379"}}
existingConnections: All`},
	{name: "a fork without a kind is a Deployment's", spec: `{forks: [{workload: {name: route}}]}`},

	{name: "a name that is no label's value", object: `{metadata: {name: a.b}}`,
		want: []string{"metadata.name", "cannot be a label's value: use at most 63 of a-z 0-9 and -"}},
	{name: "a name too long for a label's value", object: `{metadata: {name: ` + strings.Repeat("a", 64) + `}}`,
		want: []string{"metadata.name", "at most 63"}},

	{name: "a short routing key", spec: `{routingKey: short}`,
		want: []string{"spec.routingKey", "is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~"}},
	{name: "a routing key that no header could carry", spec: `{routingKey: "12345678, a=b"}`,
		want: []string{"spec.routingKey", "is not a routing key"}},
	{name: "a long routing key", spec: `{routingKey: ` + strings.Repeat("k", 65) + `}`,
		want: []string{"spec.routingKey", "64"}},
	{name: "a routing key that is a number", spec: `{routingKey: 1234567890}`,
		want: []string{"spec.routingKey", "must be of type string"}},

	{name: "a TTL that is over at once", spec: `{ttl: 0s}`, want: []string{"spec.ttl", "is over before it begins: use a positive duration"}},
	{name: "a negative TTL", spec: `{ttl: -2h}`, want: []string{"spec.ttl"}},
	{name: "a TTL without a unit", spec: `{ttl: "30"}`, want: []string{"spec.ttl", "is not a duration: write one such as 90s, 30m or 2h"}},
	{name: "a TTL in days", spec: `{ttl: 2d}`, want: []string{"spec.ttl", "is not a duration"}},
	{name: "a TTL in words", spec: `{ttl: 2 hours}`, want: []string{"spec.ttl", "is not a duration"}},
	{name: "a TTL of a century", spec: `{ttl: 99999h}`, want: []string{"spec.ttl", "is longer than a year"}},
	{name: "a TTL of a year", spec: `{ttl: 8760h}`},
	{name: "a TTL in pieces", spec: `{ttl: 1.5h20m3s500ms}`},

	{name: "a kind that cannot be forked", spec: `{forks: [{workload: {kind: Job, name: a}}]}`,
		want: []string{"spec.forks[0].workload.kind", `"Job"`, `"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "CronJob"`}},
	{name: "a fork of nothing", spec: `{forks: [{workload: {name: ""}}]}`, want: []string{"spec.forks[0].workload.name", "name the workload to fork"}},
	{name: "a fork without a name", spec: `{forks: [{workload: {kind: Deployment}}]}`, want: []string{"spec.forks[0].workload.name", "Required"}},
	{name: "one workload forked twice", spec: `{forks: [{workload: {name: a}}, {workload: {name: b}}, {workload: {kind: Deployment, name: a}}]}`,
		want: []string{"spec.forks", "a workload is forked twice: merge the two entries"}},
	{name: "more forks than there may be", spec: `{forks: [` + repeated(33, "{workload: {name: w%d}}") + `]}`,
		want: []string{"spec.forks", "must have at most 32 items"}},
	{name: "as many forks as there may be", spec: `{forks: [` + repeated(32, "{workload: {name: w%d}}") + `]}`},

	{name: "every Service observed", spec: `{observe: ["*"], propagate: TraceID}`},
	{name: "Services observed", spec: `{observe: [cart, checkout]}`},
	{name: "a Service observed twice", spec: `{observe: [cart, cart]}`, want: []string{"spec.observe[1]", "Duplicate value"}},
	{name: "a host's name observed", spec: `{observe: [cart.shop]}`,
		want: []string{"spec.observe", "is not the name of a Service: write metadata.name of one in the sandbox's namespace, or"}},
	{name: "all Services observed beside some", spec: `{observe: [cart, "*"]}`,
		want: []string{"spec.observe", "which means every Service already"}},
	{name: "more Services observed than there may be", spec: `{observe: [` + repeated(129, "s%d") + `]}`,
		want: []string{"spec.observe", "must have at most 128 items"}},
	{name: "a word that stands for no key", spec: `{propagate: SpanID}`, want: []string{"spec.propagate", `"SpanID"`, `"TraceID"`}},

	{name: "one container overridden twice", spec: `{forks: [{workload: {name: a}, containers: [{name: c}, {name: c}]}]}`,
		want: []string{"spec.forks[0].containers[1]", "Duplicate value"}},
	{name: "a container without a name", spec: `{forks: [{workload: {name: a}, containers: [{name: ""}]}]}`,
		want: []string{"spec.forks[0].containers[0].name", "name a container of the workload's pod template"}},
	{name: "one variable set twice", spec: `{forks: [{workload: {name: a}, containers: [{name: c, env: [{name: A, value: x}, {name: A, value: y}]}]}]}`,
		want: []string{"containers[0].env[1]", "Duplicate value"}},
	{name: "one variable removed twice", spec: `{forks: [{workload: {name: a}, containers: [{name: c, removeEnv: [A, A]}]}]}`,
		want: []string{"containers[0].removeEnv[1]", "Duplicate value"}},
	{name: "one variable both set and removed", spec: `{forks: [{workload: {name: a}, containers: [{name: c, env: [{name: A}], removeEnv: [B, A]}]}]}`,
		want: []string{"containers[0].removeEnv", "names a variable that env sets: remove it from one of the two"}},
	{name: "a variable without a name", spec: `{forks: [{workload: {name: a}, containers: [{name: c, env: [{name: ""}]}]}]}`,
		want: []string{"containers[0].env", "a variable has no name"}},
	{name: "more variables than there may be", spec: `{forks: [{workload: {name: a}, containers: [{name: c, env: [` + repeated(129, "{name: V%d}") + `]}]}]}`,
		want: []string{"containers[0].env", "must have at most 128 items"}},
	{name: "more removed variables than there may be", spec: `{forks: [{workload: {name: a}, containers: [{name: c, removeEnv: [` + repeated(65, "V%d") + `]}]}]}`,
		want: []string{"containers[0].removeEnv", "must have at most 64 items"}},
	{name: "more containers than there may be", spec: `{forks: [{workload: {name: a}, containers: [` + repeated(33, "{name: c%d}") + `]}]}`,
		want: []string{"forks[0].containers", "must have at most 32 items"}},
	{name: "a patch that is text", spec: `{forks: [{workload: {name: a}, patch: "spec: {}"}]}`,
		want: []string{"spec.forks[0].patch", "must be of type object"}, notInGo: "it is kept as it is"},

	{name: "a redirect to nowhere", spec: `{redirects: [{from: {service: a}, to: {}}]}`,
		want: []string{"spec.redirects[0].to", "set exactly one of service or address"}},
	{name: "a redirect to two places", spec: `{redirects: [{from: {service: a}, to: {service: b, address: 10.0.0.9}}]}`,
		want: []string{"spec.redirects[0].to", "set exactly one of service or address"}},
	{name: "a redirect without a destination", spec: `{redirects: [{from: {service: a}}]}`, want: []string{"spec.redirects[0].to", "Required"}},
	{name: "a redirect from nothing", spec: `{redirects: [{from: {service: ""}, to: {service: b}}]}`,
		want: []string{"spec.redirects[0].from.service", "is not the name of a Service"}},
	{name: "a redirect from a host's name", spec: `{redirects: [{from: {service: a.shop.svc}, to: {service: b}}]}`,
		want: []string{"spec.redirects[0].from.service", "is not the name of a Service: write metadata.name of one in the sandbox's namespace"}},
	{name: "a redirect to a host's name", spec: `{redirects: [{from: {service: a}, to: {service: db.example.com}}]}`,
		want: []string{"spec.redirects[0].to.service", "is not the name of a Service"}},
	{name: "port zero", spec: `{redirects: [{from: {service: a, port: 0}, to: {service: b}}]}`,
		want: []string{"spec.redirects[0].from.port", "is neither a port's number, 1 to 65535, nor its name"}},
	{name: "a port larger than any", spec: `{redirects: [{from: {service: a, port: 65536}, to: {service: b}}]}`,
		want: []string{"spec.redirects[0].from.port", "is neither a port's number"}},
	{name: "a port that no program could read", spec: `{redirects: [{from: {service: a, port: 99999999999}, to: {service: b}}]}`,
		want: []string{"spec.redirects[0].from.port", "is neither a port's number"}},
	{name: "a port's name that none has", spec: `{redirects: [{from: {service: a}, to: {service: b, port: HTTP_}}]}`,
		want: []string{"spec.redirects[0].to.port", "is neither a port's number"}},
	{name: "a port's name of any length", spec: `{redirects: [{from: {service: a}, to: {service: b, port: ` + strings.Repeat("p", 64) + `}}]}`,
		want: []string{"spec.redirects[0].to.port", "63"}},
	{name: "a port that is neither number nor text", spec: `{redirects: [{from: {service: a, port: [80]}, to: {service: b}}]}`,
		want: []string{"spec.redirects[0].from.port"}},
	{name: "a name for the port of an address", spec: `{redirects: [{from: {service: a}, to: {address: 10.0.0.9, port: http}}]}`,
		want: []string{"spec.redirects[0].to.port", "is a name, and an address has no named ports: use a number, 1 to 65535"}},
	{name: "a number in quotes that is no port's", spec: `{redirects: [{from: {service: a}, to: {address: 10.0.0.9, port: "70000"}}]}`,
		want: []string{"spec.redirects[0].to.port", "use a number, 1 to 65535"}},
	{name: "an address with a port in it", spec: `{redirects: [{from: {service: a}, to: {address: "10.0.0.9:80"}}]}`,
		want: []string{"spec.redirects[0].to.address", "is not an IP address: write one such as 10.0.0.9 or 2001:db8::9, and the port in to.port"}},
	{name: "an address that is a name", spec: `{redirects: [{from: {service: a}, to: {address: db.example.com}}]}`,
		want: []string{"spec.redirects[0].to.address", "is not an IP address"}},
	{name: "an address with a zone", spec: `{redirects: [{from: {service: a}, to: {address: "fe80::1%eth0"}}]}`,
		want: []string{"spec.redirects[0].to.address", "is not an IP address"}},
	{name: "an address mapped into IPv6", spec: `{redirects: [{from: {service: a}, to: {address: "::ffff:10.0.0.9"}}]}`,
		want: []string{"spec.redirects[0].to.address"}},
	{name: "loopback", spec: `{redirects: [{from: {service: a}, to: {address: 127.0.0.1}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node or in every pod: use an address that is the same for all"}},
	{name: "loopback of IPv6", spec: `{redirects: [{from: {service: a}, to: {address: "::1"}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node"}},
	{name: "a link-local address", spec: `{redirects: [{from: {service: a}, to: {address: 169.254.169.254}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node"}},
	{name: "a link-local address of IPv6", spec: `{redirects: [{from: {service: a}, to: {address: "fe80::1"}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node"}},
	{name: "the unspecified address", spec: `{redirects: [{from: {service: a}, to: {address: 0.0.0.0}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node"}},
	{name: "a multicast address", spec: `{redirects: [{from: {service: a}, to: {address: 239.1.2.3}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node"}},
	{name: "broadcast", spec: `{redirects: [{from: {service: a}, to: {address: 255.255.255.255}}]}`,
		want: []string{"spec.redirects[0].to.address", "means something else on every node"}},
	{name: "a namespace for an address", spec: `{redirects: [{from: {service: a}, to: {address: 10.0.0.9, namespace: other}}]}`,
		want: []string{"spec.redirects[0].to.namespace", "an address is in no namespace"}},
	{name: "a namespace that none could be", spec: `{redirects: [{from: {service: a}, to: {service: b, namespace: Other_One}}]}`,
		want: []string{"spec.redirects[0].to.namespace", "is not a namespace's name"}},
	{name: "one port redirected twice", spec: `{redirects: [{from: {service: a, port: 80}, to: {service: b}}, {from: {service: a, port: 80}, to: {service: c}}]}`,
		want: []string{"spec.redirects", "a Service's port is redirected twice: remove one of the two entries"}},
	{name: "one port redirected twice, once in quotes", spec: `{redirects: [{from: {service: a, port: 80}, to: {service: b}}, {from: {service: a, port: "80"}, to: {service: c}}]}`,
		want: []string{"spec.redirects", "is redirected twice"}},
	{name: "all ports redirected twice", spec: `{redirects: [{from: {service: a}, to: {service: b}}, {from: {service: a}, to: {service: c}}]}`,
		want: []string{"spec.redirects", "is redirected twice"}},
	{name: "one port and then all others", spec: `{redirects: [{from: {service: a, port: 80}, to: {service: b}}, {from: {service: a}, to: {service: c}}]}`},
	{name: "more redirects than there may be", spec: `{redirects: [` + repeated(129, "{from: {service: s%d}, to: {service: b}}") + `]}`,
		want: []string{"spec.redirects", "must have at most 128 items"}},
	{name: "as many redirects as there may be", spec: `{redirects: [` + repeated(128, "{from: {service: a-service-with-a-rather-long-name, port: a-port-with-a-long-name-%d}, to: {service: b}}") + `]}`},
	{name: "unavailable, misspelt", spec: `{redirects: [{from: {service: a}, to: {service: b}, unavailable: Fallback}]}`,
		want: []string{"spec.redirects[0].unavailable", `"Reject", "Baseline"`}},
	{name: "existingConnections, misspelt", spec: `{existingConnections: idle}`, want: []string{"spec.existingConnections", `"Idle", "All", "Leave"`}},

	{name: "a group by name", kind: "RouteGroup", spec: `{sandboxes: [{name: a}, {name: b}], existingConnections: Leave}`},
	{name: "a group by label", kind: "RouteGroup", spec: `{routingKey: team-blue-key, selector: {matchLabels: {team: blue}, matchExpressions: [{key: tier, operator: In, values: [a]}, {key: owner, operator: Exists}]}}`},
	{name: "a group of nobody", kind: "RouteGroup", spec: `{}`, want: []string{"spec", "set sandboxes, selector or both: a group needs members"}},
	{name: "a group with an empty list", kind: "RouteGroup", spec: `{sandboxes: []}`, want: []string{"spec.sandboxes", "at least 1"}},
	{name: "a group without a spec", kind: "RouteGroup", object: `{metadata: {name: sample}}`, want: []string{"spec", "Required"}},
	{name: "a member twice", kind: "RouteGroup", spec: `{sandboxes: [{name: a}, {name: a}]}`, want: []string{"spec.sandboxes[1]", "Duplicate value"}},
	{name: "a member of another namespace", kind: "RouteGroup", spec: `{sandboxes: [{name: other/a}]}`,
		want: []string{"spec.sandboxes[0].name", "is not the name of a Sandbox: write metadata.name of one in the group's namespace"}},
	{name: "more members than there may be", kind: "RouteGroup", spec: `{sandboxes: [` + repeated(33, "{name: s%d}") + `]}`,
		want: []string{"spec.sandboxes", "must have at most 32 items"}},
	{name: "a selector with an unknown operator", kind: "RouteGroup", spec: `{selector: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}`,
		want: []string{"spec.selector", "is not a label selector"}},
	{name: "a selector without values", kind: "RouteGroup", spec: `{selector: {matchExpressions: [{key: a, operator: In}]}}`,
		want: []string{"spec.selector", "is not a label selector"}},
	{name: "a group's short key", kind: "RouteGroup", spec: `{routingKey: short, sandboxes: [{name: a}]}`,
		want: []string{"spec.routingKey", "is not a routing key"}},
	{name: "a group's name with a dot", kind: "RouteGroup", object: `{metadata: {name: a.b}, spec: {sandboxes: [{name: a}]}}`,
		want: []string{"metadata.name", "cannot be a label's value"}},
}

func repeated(n int, format string) string {
	items := make([]string, n)
	for i := range items {
		items[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(items, ", ")
}

func TestTheServerRefusesWhatIsInvalidInWordsThatHelpAndGoAgrees(t *testing.T) {
	c := connect(t)
	ns := c.namespace(t)
	for _, tt := range specs {
		t.Run(tt.name, func(t *testing.T) {
			kind := tt.kind
			if kind == "" {
				kind = v1alpha1.SandboxKind
			}
			text := tt.object
			if text == "" {
				text = "metadata: {name: sample}\nspec: " + strings.ReplaceAll("\n"+strings.TrimSpace(tt.spec), "\n", "\n  ")
			}
			o := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
				t.Fatal(err)
			}
			o.SetAPIVersion(v1alpha1.APIVersion)
			o.SetKind(kind)
			_, err := c.of(plural(kind), ns).Create(t.Context(), o, metav1.CreateOptions{
				FieldValidation: metav1.FieldValidationStrict, DryRun: []string{metav1.DryRunAll},
			})
			switch {
			case len(tt.want) == 0 && err != nil:
				t.Fatalf("refused: %v", err)
			case len(tt.want) > 0 && err == nil:
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the server says\n\t%v\nwithout %q", err, want)
				}
			}
			if err != nil && strings.Contains(err.Error(), "evaluating rule") {
				t.Errorf("a rule fails instead of saying what is wrong: %v", err)
			}
			errs := goVerdict(t, kind, text)
			if refused := len(errs) > 0; refused != (err != nil) && tt.notInGo == "" {
				t.Errorf("Validate says %v, the server %v", errs, err)
			}
		})
	}
}

// goVerdict decodes the object as the agent does from a manifest, and validates it.
func goVerdict(t *testing.T, kind, text string) []string {
	t.Helper()
	var o interface{ Validate() field.ErrorList }
	switch kind {
	case v1alpha1.SandboxKind:
		o = &v1alpha1.Sandbox{}
	case v1alpha1.RouteGroupKind:
		o = &v1alpha1.RouteGroup{}
	}
	data, err := yaml.YAMLToJSON([]byte(text))
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, o)
	}
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	for _, err := range o.Validate() {
		out = append(out, err.Error())
	}
	return out
}

func TestTheRoutingKeyStaysWhatItIs(t *testing.T) {
	c := connect(t)
	for _, tt := range []struct {
		name, kind    string
		before, after map[string]any
		refused       bool
	}{
		{"changed", "Sandbox", map[string]any{"routingKey": "first-key"}, map[string]any{"routingKey": "second-key"}, true},
		{"removed", "Sandbox", map[string]any{"routingKey": "first-key"}, map[string]any{}, true},
		{"removed with the spec", "Sandbox", map[string]any{"routingKey": "first-key"}, nil, true},
		{"set later", "Sandbox", map[string]any{}, map[string]any{"routingKey": "second-key"}, true},
		{"set later, with the spec", "Sandbox", nil, map[string]any{"routingKey": "second-key"}, true},
		{"kept while the rest changes", "Sandbox", map[string]any{"routingKey": "first-key"}, map[string]any{"routingKey": "first-key", "ttl": "1h"}, false},
		{"none while the rest changes", "Sandbox", map[string]any{}, map[string]any{"ttl": "1h"}, false},
		{"a group's changed", "RouteGroup", map[string]any{"routingKey": "first-key", "selector": map[string]any{}},
			map[string]any{"routingKey": "second-key", "selector": map[string]any{}}, true},
		{"a group's set later", "RouteGroup", map[string]any{"selector": map[string]any{}},
			map[string]any{"routingKey": "second-key", "selector": map[string]any{}}, true},
		{"a group's kept", "RouteGroup", map[string]any{"routingKey": "first-key", "selector": map[string]any{}},
			map[string]any{"routingKey": "first-key", "sandboxes": []any{map[string]any{"name": "a"}}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := c.of(plural(tt.kind), c.namespace(t))
			o := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "sample"}}}
			o.SetAPIVersion(v1alpha1.APIVersion)
			o.SetKind(tt.kind)
			if tt.before != nil {
				o.Object["spec"] = tt.before
			}
			o, err := in.Create(t.Context(), o, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			delete(o.Object, "spec")
			if tt.after != nil {
				o.Object["spec"] = tt.after
			}
			_, err = in.Update(t.Context(), o, metav1.UpdateOptions{})
			if !tt.refused && err != nil {
				t.Fatalf("refused: %v", err)
			}
			if tt.refused && (err == nil || !strings.Contains(err.Error(), "spec.routingKey") || !strings.Contains(err.Error(), "cannot be changed, set later or removed")) {
				t.Fatalf("the server says %v", err)
			}
		})
	}
}

func TestDefaultsAreFilledIn(t *testing.T) {
	c := connect(t)
	in := c.of("sandboxes", c.namespace(t))
	o := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "bare"}}}
	o.SetAPIVersion(v1alpha1.APIVersion)
	o.SetKind(v1alpha1.SandboxKind)
	bare, err := in.Create(t.Context(), o.DeepCopy(), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := unstructured.NestedString(bare.Object, "spec", "existingConnections"); got != "Idle" {
		t.Errorf("existingConnections %q of a Sandbox without a spec, want Idle", got)
	}
	o.SetName("short")
	o.Object["spec"] = map[string]any{
		"forks":     []any{map[string]any{"workload": map[string]any{"name": "route"}}},
		"redirects": []any{map[string]any{"from": map[string]any{"service": "a"}, "to": map[string]any{"service": "b"}}},
	}
	short, err := in.Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	forks, _, _ := unstructured.NestedSlice(short.Object, "spec", "forks")
	if kind, _, _ := unstructured.NestedString(forks[0].(map[string]any), "workload", "kind"); kind != "Deployment" {
		t.Errorf("kind %q of a fork without one, want Deployment", kind)
	}
	redirects, _, _ := unstructured.NestedSlice(short.Object, "spec", "redirects")
	if got := redirects[0].(map[string]any)["unavailable"]; got != "Reject" {
		t.Errorf("unavailable %q of a redirect without it, want Reject", got)
	}
}

func TestKubectlExplainsTheKindsAndKnowsTheirShortNames(t *testing.T) {
	for field, want := range map[string]string{
		"sandboxes.spec.redirects.to.namespace": "ReferenceGrant",
		"routegroups.spec.selector":             "labels match",
		"nodestates.status.bootID":              "reboot",
	} {
		if out, err := plane.Kubectl(t.Context(), "explain", field); err != nil || !strings.Contains(out, want) {
			t.Errorf("kubectl explain %s: %v, %q", field, err, out)
		}
	}
	c := connect(t)
	list, err := c.core.Discovery().ServerResourcesForGroupVersion(v1alpha1.APIVersion)
	if err != nil {
		t.Fatal(err)
	}
	short := map[string][]string{}
	for _, r := range list.APIResources {
		if !strings.Contains(r.Name, "/") {
			short[r.Name] = r.ShortNames
			if !slices.Contains(r.Categories, "sidetrack") {
				t.Errorf("%s is not in the category sidetrack", r.Name)
			}
		}
	}
	for plural, want := range map[string]string{"sandboxes": "sdbx", "routegroups": "sdrg", "nodestates": "sdn"} {
		if !slices.Contains(short[plural], want) {
			t.Errorf("%s has the short names %v, without %s", plural, short[plural], want)
		}
	}
	if _, err := plane.Kubectl(t.Context(), "get", "sidetrack", "--all-namespaces"); err != nil {
		t.Error(err)
	}
}
