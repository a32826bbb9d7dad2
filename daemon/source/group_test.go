// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/routing"
)

func memberYAML(namespace, name, labels, from string) string {
	return fmt.Sprintf(`---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: %[2]s, namespace: %[1]s, labels: {%[3]s}}
spec:
  routingKey: key-of-%[1]s-%[2]s
  redirects: [{from: {service: %[4]s}, to: {service: %[4]s-%[2]s}}]
`, namespace, name, labels, from)
}

const groupYAML = `---
apiVersion: sidetrack.dev/v1alpha1
kind: RouteGroup
metadata: {name: blue, namespace: shop}
spec:
  routingKey: key-of-group
  sandboxes: [{name: zebra}, {name: ant}]
  selector: {matchLabels: {team: blue}}
  existingConnections: Leave
`

// leads returns where a group's redirects lead, in their order.
func leads(s Snapshot, name string) (out []string) {
	for _, b := range s.Input.Sandboxes {
		if b.Group && b.Name.Name == name {
			for _, r := range b.Redirects {
				out = append(out, r.To.Service)
			}
		}
	}
	return out
}

func TestAGroupHasItsMembersRedirectsFromAllFiles(t *testing.T) {
	f := openFolder(t, map[string]string{
		"a.yaml": groupYAML + memberYAML("shop", "ant", "", "a"),
		"b.yaml": memberYAML("shop", "zebra", "team: blue", "b") + memberYAML("shop", "fox", "team: blue", "c") +
			memberYAML("shop", "bee", "team: blue", "d") + memberYAML("shop", "stranger", "team: red", "e"),
		// Another namespace's is nobody's member.
		"c.yaml": memberYAML("other", "cow", "team: blue", "f"),
	})
	s := f.next("the first snapshot", always)
	if got := texts(s); len(got) > 0 {
		t.Errorf("problems: %v", got)
	}
	// The named in their order, then the selected by name.
	if diff := cmp.Diff([]string{"b-zebra", "a-ant", "d-bee", "c-fox"}, leads(s, "blue")); diff != "" {
		t.Errorf("redirects (-want +got):\n%s", diff)
	}
	for _, b := range s.Input.Sandboxes {
		if diff := cmp.Diff([]string{"zebra", "ant", "bee", "fox"}, b.Members); b.Group && diff != "" {
			t.Errorf("members (-want +got):\n%s", diff)
		}
		if b.Group && (b.Key != "key-of-group" || b.Existing != routing.Leave || b.Name != (routing.Name{Namespace: "shop", Name: "blue"})) {
			t.Errorf("group %+v", b)
		}
	}
	// Members come and go in other files than the group's.
	f.write("b.yaml", memberYAML("shop", "fox", "team: blue", "c")+memberYAML("shop", "bee", "team: red", "d"))
	s = f.next("the members without zebra and bee", func(s Snapshot) bool { return len(leads(s, "blue")) == 2 })
	if diff := cmp.Diff([]string{"a-ant", "c-fox"}, leads(s, "blue")); diff != "" {
		t.Errorf("redirects (-want +got):\n%s", diff)
	}
	want := []string{"a.yaml: document 1: RouteGroup shop/blue: spec.sandboxes: there is no Sandbox shop/zebra: create it or correct the name; the group does without it"}
	if diff := cmp.Diff(want, texts(s)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestAGroupThatIsInvalidIsRefused(t *testing.T) {
	f := openFolder(t, map[string]string{"a.yaml": `
apiVersion: sidetrack.dev/v1alpha1
kind: RouteGroup
metadata: {name: blue}
spec: {routingKey: a-good-key}
`})
	want := []string{"a.yaml: document 1: RouteGroup default/blue: spec: set sandboxes, selector or both: a group needs members"}
	if diff := cmp.Diff(want, texts(f.next("the first snapshot", always))); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func crossing(to string) string {
	return `---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-42, namespace: shop}
spec:
  routingKey: key-of-pr-42
  redirects:
  - {from: {service: route}, to: {service: route-pr-42}}
  - {from: {service: postgres}, to: {service: db, namespace: ` + to + `}}
`
}

func grantYAML(in, from, to string) string {
	return fmt.Sprintf(`---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: let, namespace: %s}
spec:
  from: [%s]
  to: [%s]
`, in, from, to)
}

// refused returns the reason of the sandbox's second redirect.
func refused(s Snapshot) string { return s.Input.Sandboxes[0].Redirects[1].Refused }

func TestARedirectIntoAnotherNamespaceNeedsAGrantThere(t *testing.T) {
	const ours = "{group: sidetrack.dev, kind: Sandbox, namespace: shop}"
	for _, tt := range []struct {
		name, to, grant string
		allowed         bool
	}{
		{"no grant", "data", "", false},
		{"a grant for all Services", "data", grantYAML("data", ours, `{group: "", kind: Service}`), true},
		{"a grant for this Service", "data", grantYAML("data", ours, `{group: "", kind: Service, name: db}`), true},
		{"one of several", "data", grantYAML("data", "{group: example.com, kind: Thing, namespace: shop}, "+ours, `{group: "", kind: Secret}, {group: "", kind: Service, name: db}`), true},
		{"a grant for another Service", "data", grantYAML("data", ours, `{group: "", kind: Service, name: cache}`), false},
		{"a grant for Secrets", "data", grantYAML("data", ours, `{group: "", kind: Secret}`), false},
		{"a grant for another namespace's Sandboxes", "data", grantYAML("data", "{group: sidetrack.dev, kind: Sandbox, namespace: other}", `{group: "", kind: Service}`), false},
		{"a grant for another kind", "data", grantYAML("data", "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}", `{group: "", kind: Service}`), false},
		{"a grant in a third namespace", "data", grantYAML("elsewhere", ours, `{group: "", kind: Service}`), false},
		{"a grant in the sandbox's own namespace", "data", grantYAML("shop", ours, `{group: "", kind: Service}`), false},
		{"the sandbox's own namespace, written out", "shop", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := openFolder(t, map[string]string{"a.yaml": crossing(tt.to) + tt.grant})
			s := f.next("the first snapshot", always)
			if got := refused(s); (got == "") != tt.allowed {
				t.Errorf("refused: %q", got)
			}
			if got := s.Input.Sandboxes[0].Redirects[0].Refused; got != "" {
				t.Errorf("the redirect beside it is refused: %q", got)
			}
			text := strings.Join(texts(s), "\n")
			if said := strings.Contains(text, "no ReferenceGrant in namespace data lets Sandboxes of namespace shop refer to it"); said == tt.allowed {
				t.Errorf("problems: %s", text)
			}
		})
	}
}

func TestAGrantIsFollowedAndEarlierSnapshotsStayAsTheyWere(t *testing.T) {
	let := grantYAML("data", "{group: sidetrack.dev, kind: Sandbox, namespace: shop}", `{group: "", kind: Service}`)
	f := openFolder(t, map[string]string{"a.yaml": crossing("data")})
	before := f.next("the first snapshot", always)
	f.write("grant.yaml", let)
	given := f.next("the grant", func(s Snapshot) bool { return refused(s) == "" })
	f.write("grant.yaml", "# revoked\n")
	f.next("the grant revoked", func(s Snapshot) bool { return refused(s) != "" })
	if refused(before) == "" || refused(given) != "" {
		t.Error("a snapshot has changed after it was sent")
	}
}
