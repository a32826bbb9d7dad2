// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

func serviceYAML(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec:\n  clusterIP: %s\n  ports: [{port: 80}]\n", name, ip)
}

func sandboxYAML(name, to string) string {
	return fmt.Sprintf("apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: %s, namespace: shop}\nspec:\n  routingKey: secret-key-%s\n  redirects:\n  - from: {service: route}\n    to: %s\n", name, name, to)
}

// folder is a directory of manifests under test.
type folder struct {
	t   *testing.T
	dir string
	m   *Manifests
}

func openFolder(t *testing.T, files map[string]string) *folder {
	t.Helper()
	f := &folder{t: t, dir: filepath.Join(t.TempDir(), "manifests")}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		f.write(name, text)
	}
	m, err := OpenManifests(f.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	f.m = m
	return f
}

func (f *folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// next returns the first snapshot that satisfies want.
func (f *folder) next(what string, want func(Snapshot) bool) Snapshot {
	f.t.Helper()
	limit := time.After(10 * time.Second)
	var last Snapshot
	for {
		select {
		case last = <-f.m.Snapshots():
			if want(last) {
				return last
			}
		case <-limit:
			f.t.Fatalf("waited for %s; the last snapshot is %+v", what, last)
		}
	}
}

func always(Snapshot) bool { return true }

func services(n int) func(Snapshot) bool {
	return func(s Snapshot) bool { return len(s.Input.Services) == n }
}

func problems(n int) func(Snapshot) bool {
	return func(s Snapshot) bool { return len(s.Problems) == n }
}

func texts(s Snapshot) []string {
	var out []string
	for _, p := range s.Problems {
		out = append(out, p.String())
	}
	return out
}

func TestAllKindsAreRead(t *testing.T) {
	f := openFolder(t, map[string]string{
		"all.yaml": `# a comment before the first document is none
---
apiVersion: v1
kind: Service
metadata: {name: route, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.7
  clusterIPs: [10.96.0.7, "fd00::7"]
  externalIPs: [192.0.2.7]
  ports:
  - {name: http, port: 80, appProtocol: kubernetes.io/h2c, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP}
  - {name: sig, port: 9, protocol: SCTP}
status: {loadBalancer: {ingress: [{ip: 192.0.2.8}, {hostname: lb.example}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: db.example}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: route-1, namespace: shop, labels: {kubernetes.io/service-name: route}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2], conditions: {ready: false}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: client}
  metadata:
    name: client
    annotations: {sidetrack.dev/netns: client-ns}
    labels: {sidetrack.dev/sandbox: pr-42, sidetrack.dev/inject: "true"}
- apiVersion: v1
  kind: Pod
  metadata: {name: done}
  status: {phase: Succeeded}
- apiVersion: v1
  kind: Pod
  metadata: {name: leaving, deletionTimestamp: "2026-01-01T00:00:00Z"}
  spec: {hostNetwork: true}
`,
		"sandbox.yaml": `apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-42, namespace: shop}
spec:
  routingKey: secret-key-42
  redirects:
  - from: {service: route, port: http}
    to: {service: route-pr-42}
  - from: {service: db, port: 5432}
    to: {address: 10.0.0.9, port: 5433}
    unavailable: Baseline
  existingConnections: All
  observe: [cart]
  propagate: TraceID
---
`,
		"ignored.yml":    serviceYAML("other", "10.96.0.99"),
		".hidden.yaml":   serviceYAML("hidden", "10.96.0.98"),
		"notes.yaml.bak": "not: [yaml",
	})
	// The List's first item has a key twice.
	s := f.next("the first snapshot", always)
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0].String(), "already set in map") {
		t.Fatalf("problems: %q", texts(s))
	}
	text, _ := os.ReadFile(filepath.Join(f.dir, "all.yaml"))
	f.write("all.yaml", strings.Replace(string(text), "  metadata: {name: client}\n", "", 1))
	s = f.next("no problems", problems(0))

	want := Snapshot{
		Input: routing.Input{
			Services: []routing.Service{
				{
					Name:      routing.Name{Namespace: "shop", Name: "route"},
					Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7"), netip.MustParseAddr("fd00::7")},
					Ports:     []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP, HTTP2: true}, {Name: "dns", Port: 53, Protocol: routing.UDP}},
				},
				{Name: routing.Name{Namespace: "shop", Name: "headless"}, Ports: []routing.ServicePort{{Port: 80, Protocol: routing.TCP}}},
				{Name: routing.Name{Namespace: "shop", Name: "alias"}, ExternalName: "db.example"},
			},
			Slices: []routing.EndpointSlice{{
				Name: routing.Name{Namespace: "shop", Name: "route-1"}, Service: "route",
				Ports: []routing.EndpointPort{{Name: "http", Port: 8080, Protocol: routing.TCP}},
				Endpoints: []routing.Endpoint{
					{Addr: netip.MustParseAddr("10.0.0.1"), Ready: true},
					{Addr: netip.MustParseAddr("10.0.0.2")},
				},
			}},
			Sandboxes: []routing.Sandbox{{
				Name: routing.Name{Namespace: "shop", Name: "pr-42"}, Key: "secret-key-42", Existing: routing.All,
				Observe: []string{"cart"}, Propagate: true,
				Redirects: []routing.Redirect{
					{From: routing.ServiceRef{Service: "route", Port: "http"}, To: routing.Target{Service: "route-pr-42"}, Field: "spec.redirects[0]"},
					{From: routing.ServiceRef{Service: "db", Port: "5432"}, To: routing.Target{Address: netip.MustParseAddr("10.0.0.9"), Port: "5433"}, Unavailable: routing.Baseline, Field: "spec.redirects[1]"},
				},
			}},
		},
		Pods: []pods.Pod{
			{Name: routing.Name{Namespace: "default", Name: "client"}, Netns: "client-ns", Sandbox: "pr-42", Inject: true},
			{Name: routing.Name{Namespace: "default", Name: "leaving"}, HostNetwork: true},
		},
	}
	if diff := cmp.Diff(want, s, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("snapshot (-want +got):\n%s", diff)
	}
}

func TestProblemsNameFileDocumentObjectFieldAndRemedy(t *testing.T) {
	sandbox := "apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: pr-42, namespace: shop}\n"
	for _, tt := range []struct {
		name, text, want string
		refused          bool
	}{
		{"a redirect without a target", serviceYAML("a", "10.0.0.1") + "---\n" + serviceYAML("b", "10.0.0.2") + "---\n" + sandboxYAML("pr-42", "{}"),
			"shop.yaml: document 3: Sandbox shop/pr-42: spec.redirects[0].to: set exactly one of service or address", true},
		{"an unknown field of our own kind", sandbox + "spec: {redirects: [{from: {service: a}, to: {service: b}}, {from: {services: a}, to: {service: b}}]}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.redirects[1].from.services: is not a field of Sandbox: correct its name or remove it", true},
		{"an unknown field of another's kind", serviceYAML("a", "10.0.0.1") + "  newField: 1\n",
			"shop.yaml: document 1: Service shop/a: spec.newField: is unknown and has no effect", false},
		{"a number where text belongs, not shown since it may be a key", sandbox + "spec: {routingKey: 123456789}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.routingKey: is a number where text is needed: put it in quotes", true},
		{"a duration that is none", sandbox + "spec: {routingKey: abcdefgh, ttl: two hours}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.ttl: is not a duration: write one such as 90s, 30m or 2h", true},
		{"a port of the wrong type in the second redirect", sandbox + "spec: {redirects: [{from: {service: a}, to: {service: b}}, {from: {service: a, port: {}}, to: {service: b}}]}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.redirects[1].from.port: is an object where a whole number is needed", true},
		{"fields where text belongs", sandbox + "spec: {redirects: [{from: {service: {name: a}}, to: {service: b}}]}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.redirects[0].from.service: is an object where text is needed", true},
		{"an address that is none in a core kind", serviceYAML("a", "10.0.0.300"),
			`shop.yaml: document 1: Service shop/a: spec.clusterIP: "10.0.0.300" is not an IP address`, true},
		{"broken YAML, with the file's line", serviceYAML("a", "10.0.0.1") + "---\na: b\nc: [d\n",
			"shop.yaml: document 2: yaml: line 9: did not find expected ',' or ']'", true},
		{"an unknown kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n",
			"shop.yaml: document 1: Deployment default/x: is ignored: apps/v1 Deployment is none of v1 Service, v1 Pod, discovery.k8s.io/v1 EndpointSlice, gateway.networking.k8s.io/v1 ReferenceGrant, and sidetrack.dev/v1alpha1 Sandbox and RouteGroup", false},
		{"a document that is no object", "- a\n- b\n",
			"shop.yaml: document 1: is not an object: it has no fields", true},
		{"an object without a kind", "apiVersion: v1\nmetadata: {name: x}\n",
			"shop.yaml: document 1: kind: is missing: every object says its apiVersion and its kind", true},
		{"an object without a name", "apiVersion: v1\nkind: Service\nspec: {clusterIP: None}\n",
			"shop.yaml: document 1: Service default/(unnamed): metadata.name: every object needs a name", true},
		{"one object twice in a file", serviceYAML("a", "10.0.0.1") + "---\n" + serviceYAML("a", "10.0.0.2"),
			"shop.yaml: document 2: Service shop/a: is in shop.yaml, document 1 as well: remove one of the two", true},
		{"an item of a List", "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: x}}\n",
			`shop.yaml: document 1, item 1: Service default/a: spec.clusterIP: "x" is not an IP address`, true},
		{"forks in standalone mode", sandbox + "spec: {routingKey: abcdefgh, forks: [{workload: {kind: Deployment, name: x}}]}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.forks: forks need the controller, which standalone mode does not have: start them yourself and write their redirects; the redirects that are there hold", false},
		{"no routing key in standalone mode", sandbox + "spec: {}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.routingKey: standalone mode cannot generate one that anybody could read: write one; until then only flows of the sandbox's own pods are redirected", false},
		{"a TTL in standalone mode", sandbox + "spec: {routingKey: abcdefgh, ttl: 2h}\n",
			"shop.yaml: document 1: Sandbox shop/pr-42: spec.ttl: is not enforced in standalone mode: delete the manifest when its time has come", false},
		{"a slice of no Service", "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\nendpoints: []\n",
			"shop.yaml: document 1: EndpointSlice default/s: metadata.labels[kubernetes.io/service-name]: is missing, so that it belongs to no Service and is left out: name the Service there", false},
		{"an inject label that is neither", "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {sidetrack.dev/inject: \"yes\"}}\n",
			`shop.yaml: document 1: Pod default/p: metadata.labels[sidetrack.dev/inject]: "yes" has no effect: write "true", with the quotes, or leave the label out`, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := openFolder(t, map[string]string{"shop.yaml": tt.text})
			s := f.next("the first snapshot", always)
			if diff := cmp.Diff([]string{tt.want}, texts(s)); diff != "" {
				t.Fatalf("problems (-want +got):\n%s", diff)
			}
			if s.Problems[0].Refused != tt.refused {
				t.Errorf("the file is refused: %v, want %v", s.Problems[0].Refused, tt.refused)
			}
		})
	}
}

func TestABrokenFileKeepsItsLastGoodStateAndOthersGoOn(t *testing.T) {
	f := openFolder(t, map[string]string{"a.yaml": serviceYAML("a", "10.0.0.1"), "b.yaml": serviceYAML("b", "10.0.0.2")})
	f.next("both", services(2))

	f.write("a.yaml", serviceYAML("a", "10.0.0.1")+"---\n"+serviceYAML("c", "10.0.0.3")+"---\nkind: [\n")
	s := f.next("an error", problems(1))
	if len(s.Input.Services) != 2 || !s.Problems[0].Refused {
		t.Errorf("the last good state is not kept: %+v", s)
	}
	f.write("b.yaml", serviceYAML("b", "10.0.0.2")+"---\n"+serviceYAML("d", "10.0.0.4"))
	s = f.next("the other file's change", services(3))
	if len(s.Problems) != 1 {
		t.Errorf("the first file's error is forgotten: %q", texts(s))
	}
	f.write("a.yaml", serviceYAML("a", "10.0.0.9"))
	s = f.next("the repaired file", problems(0))
	if got := s.Input.Services[0].Addresses[0].String(); got != "10.0.0.9" {
		t.Errorf("the repaired file's address is %s", got)
	}
	if err := os.Remove(filepath.Join(f.dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	f.next("the deleted file's objects to be gone", services(1))
}

func TestTheFileThatBringsADuplicateIsTheOneRefused(t *testing.T) {
	f := openFolder(t, map[string]string{"b.yaml": serviceYAML("x", "10.0.0.1")})
	f.next("the first", services(1))
	// Earlier by name, later in time.
	f.write("a.yaml", serviceYAML("x", "10.0.0.2")+"---\n"+serviceYAML("w", "10.0.0.3"))
	s := f.next("the duplicate", problems(1))
	if want := "a.yaml: document 1: Service shop/x: is in b.yaml, document 1 as well: remove one of the two"; s.Problems[0].String() != want {
		t.Errorf("problem %q, want %q", s.Problems[0], want)
	}
	if len(s.Input.Services) != 1 || s.Input.Services[0].Addresses[0].String() != "10.0.0.1" {
		t.Errorf("in force: %+v", s.Input.Services)
	}
	// The object moves: gone there, it is welcome here.
	f.write("b.yaml", serviceYAML("z", "10.0.0.4"))
	s = f.next("the move", problems(0))
	if len(s.Input.Services) != 3 {
		t.Errorf("in force: %+v", s.Input.Services)
	}
}

func TestSymbolicLinksAreFollowedAsInAConfigMapsMount(t *testing.T) {
	dir := t.TempDir()
	link := func(target, name string) {
		t.Helper()
		tmp := filepath.Join(dir, name+".tmp")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for i, ip := range []string{"10.0.0.1", "10.0.0.2"} {
		sub := filepath.Join(dir, fmt.Sprintf("..v%d", i))
		if err := os.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "shop.yaml"), []byte(serviceYAML("a", ip)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link("..v0", "..data")
	link("..data/shop.yaml", "shop.yaml")
	m, err := OpenManifests(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f := &folder{t: t, dir: dir, m: m}
	address := func(want string) func(Snapshot) bool {
		return func(s Snapshot) bool {
			return len(s.Input.Services) == 1 && s.Input.Services[0].Addresses[0].String() == want
		}
	}
	f.next("the first state", address("10.0.0.1"))
	link("..v1", "..data")
	f.next("the second state", address("10.0.0.2"))
}

func TestADirectoryThatGoesAndComesBackIsFollowed(t *testing.T) {
	f := openFolder(t, map[string]string{"a.yaml": serviceYAML("a", "10.0.0.1")})
	f.next("the first", services(1))
	aside := f.dir + ".aside"
	if err := os.Rename(f.dir, aside); err != nil {
		t.Fatal(err)
	}
	s := f.next("the directory to be missed", problems(1))
	if len(s.Input.Services) != 1 {
		t.Errorf("its last state is not kept")
	}
	if err := os.Mkdir(f.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.write("b.yaml", serviceYAML("b", "10.0.0.2")+"---\n"+serviceYAML("c", "10.0.0.3"))
	f.next("the new directory's files", func(s Snapshot) bool { return services(2)(s) && problems(0)(s) })
	f.write("b.yaml", serviceYAML("b", "10.0.0.2"))
	f.next("a change in the new directory", services(1))
}

func TestAMissingDirectoryIsAClearStartUpError(t *testing.T) {
	_, err := OpenManifests("/nonexistent/manifests", slog.New(slog.DiscardHandler))
	if err == nil || err.Error() != "manifests: there is no directory /nonexistent/manifests: create it or correct --manifests" {
		t.Errorf("error: %v", err)
	}
}

func TestSplittingDocumentsCountsThemAsYAMLDoes(t *testing.T) {
	for _, tt := range []struct {
		name, stream string
		want         []string
	}{
		{"nothing", "", nil},
		{"comments only", "# a\n\n", nil},
		{"one without a marker", "a: 1\n", []string{"a: 1\n"}},
		{"a marker first", "---\na: 1\n", []string{"\na: 1\n"}},
		{"an empty document between counts", "a: 1\n---\n---\nb: 2", []string{"a: 1\n", "\n", "\nb: 2"}},
		{"content on the marker's line", "--- {a: 1}\n", []string{" {a: 1}\n"}},
		{"dashes that are no marker", "a: |\n  ---\n----\n", []string{"a: |\n  ---\n----\n"}},
		{"an end marker", "a: 1\n...\n# c\n---\nb: 2\n", []string{"a: 1\n", "\nb: 2\n"}},
		{"carriage returns", "a: 1\r\n---\r\nb: 2\r\n", []string{"a: 1\r\n", "\r\nb: 2\r\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range splitDocuments([]byte(tt.stream)) {
				got = append(got, string(p.text))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("documents (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzDecodeDocument(f *testing.F) {
	f.Add([]byte(sandboxYAML("pr-42", "{service: x}")))
	f.Add([]byte(serviceYAML("a", "10.0.0.1")))
	f.Add([]byte("kind: List\napiVersion: v1\nitems: [{}, null, 3]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, p := range splitDocuments(text) {
			d := decodeDocument(p.text, p.line)
			if d.refused && len(d.problems) == 0 {
				t.Error("refused without a reason")
			}
		}
	})
}
