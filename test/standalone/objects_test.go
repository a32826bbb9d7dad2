// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// service is a Service with its endpoints, written as users write it.
type service struct {
	name      string
	ips       []string
	ports     []port
	endpoints []endpoint
}

// port is a port of a Service. target is where its endpoints listen; the same
// number when it is zero.
type port struct {
	name     string
	number   int
	target   int
	protocol string // TCP when empty
}

type endpoint struct {
	ip      string
	unready bool
	pod     string
}

func (p port) proto() string {
	if p.protocol == "" {
		return "TCP"
	}
	return p.protocol
}

func endpointsOf(pods ...*lab.Pod) []endpoint {
	var out []endpoint
	for _, p := range pods {
		out = append(out, endpoint{ip: p.IPv4.String(), pod: p.Name}, endpoint{ip: p.IPv6.String(), pod: p.Name})
	}
	return out
}

func (s service) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec:\n", s.name)
	if len(s.ips) > 0 {
		fmt.Fprintf(&b, "  clusterIP: %q\n  clusterIPs: [%s]\n", s.ips[0], quoted(s.ips))
	} else {
		b.WriteString("  clusterIP: None\n")
	}
	b.WriteString("  ports:\n")
	for _, p := range s.ports {
		fmt.Fprintf(&b, "  - {name: %q, port: %d, protocol: %s, targetPort: %d}\n", p.name, p.number, p.proto(), p.to())
	}
	for _, family := range []string{"IPv4", "IPv6"} {
		fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: %s-%s\n  namespace: shop\n  labels: {kubernetes.io/service-name: %s}\naddressType: %s\nports:\n",
			s.name, strings.ToLower(family), s.name, family)
		for _, p := range s.ports {
			fmt.Fprintf(&b, "- {name: %q, port: %d, protocol: %s}\n", p.name, p.to(), p.proto())
		}
		b.WriteString("endpoints:\n")
		for _, e := range s.endpoints {
			if strings.Contains(e.ip, ":") == (family == "IPv6") {
				fmt.Fprintf(&b, "- addresses: [%q]\n  conditions: {ready: %v}\n", e.ip, !e.unready)
				if e.pod != "" {
					fmt.Fprintf(&b, "  targetRef: {kind: Pod, namespace: shop, name: %s}\n", e.pod)
				}
			}
		}
	}
	return b.String()
}

func (p port) to() int {
	if p.target == 0 {
		return p.number
	}
	return p.target
}

func quoted(ss []string) string {
	var q []string
	for _, s := range ss {
		q = append(q, fmt.Sprintf("%q", s))
	}
	return strings.Join(q, ", ")
}

// sandbox is a Sandbox; each line of spec beyond the key is given as YAML.
func sandbox(name, key string, spec ...string) string {
	s := fmt.Sprintf("apiVersion: sidetrack.dev/v1alpha1\nkind: Sandbox\nmetadata: {name: %s, namespace: shop}\nspec:\n", name)
	if key != "" {
		s += fmt.Sprintf("  routingKey: %q\n", key)
	}
	for _, line := range spec {
		s += "  " + line + "\n"
	}
	return s
}

// redirects is a line of a Sandbox's spec: pairs "from", "to" of Services.
func redirects(pairs ...string) string {
	var rs []string
	for i := 0; i+1 < len(pairs); i += 2 {
		rs = append(rs, fmt.Sprintf("{from: {service: %s}, to: {service: %s}}", pairs[i], pairs[i+1]))
	}
	return "redirects: [" + strings.Join(rs, ", ") + "]"
}

// put replaces a manifest in one step, as careful writers do.
func put(t *testing.T, dir, name string, docs ...string) {
	t.Helper()
	tmp := filepath.Join(dir, "."+name+".tmp")
	if err := os.WriteFile(tmp, []byte(strings.Join(docs, "---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func drop(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}
