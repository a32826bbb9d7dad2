// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func ptr[T any](v T) *T { return &v }

func valid() *Sandbox {
	return &Sandbox{
		ObjectMeta: metav1.ObjectMeta{Name: "pr-42", Namespace: "shop"},
		Spec: SandboxSpec{
			RoutingKey: "0123456789abcdef",
			TTL:        &metav1.Duration{Duration: time.Hour},
			Forks:      []Fork{{Workload: WorkloadRef{Kind: "Deployment", Name: "route"}}},
			Redirects: []Redirect{
				{From: RedirectFrom{Service: "postgres", Port: ptr(intstr.FromInt32(5432))}, To: RedirectTo{Service: "postgres-pr-42"}},
				{From: RedirectFrom{Service: "route"}, To: RedirectTo{Address: "10.0.0.9", Port: ptr(intstr.FromInt32(80))}, Unavailable: UnavailableBaseline},
			},
			ExistingConnections: ExistingIdle,
		},
	}
}

func TestValidateNamesFieldAndRemedy(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Sandbox)
		want   []string // "field: detail"
	}{
		{"a complete sandbox is valid", func(*Sandbox) {}, nil},
		{"an empty spec is valid", func(s *Sandbox) { s.Spec = SandboxSpec{} }, nil},
		{"a sandbox needs a name", func(s *Sandbox) { s.Name = "" },
			[]string{"metadata.name: name the sandbox"}},
		{"the name must fit into a label", func(s *Sandbox) { s.Name = "a.b" },
			[]string{`metadata.name: "a.b" cannot be a label's value: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit`}},
		{"a short routing key is refused without being shown", func(s *Sandbox) { s.Spec.RoutingKey = "secret!" },
			[]string{"spec.routingKey: is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~"}},
		{"a TTL must be positive", func(s *Sandbox) { s.Spec.TTL.Duration = 0 },
			[]string{"spec.ttl: 0s is over before it begins: use a positive duration such as 2h, or leave it out"}},
		{"a redirect needs one target, not none", func(s *Sandbox) { s.Spec.Redirects[0].To = RedirectTo{} },
			[]string{"spec.redirects[0].to: set exactly one of service or address"}},
		{"a redirect needs one target, not two", func(s *Sandbox) { s.Spec.Redirects[1].To.Service = "x" },
			[]string{"spec.redirects[1].to: set exactly one of service or address"}},
		{"a redirect needs a Service to come from", func(s *Sandbox) { s.Spec.Redirects[0].From.Service = "" },
			[]string{"spec.redirects[0].from.service: name the Service whose tagged traffic is redirected"}},
		{"an address with a port in it is not an address", func(s *Sandbox) { s.Spec.Redirects[1].To.Address = "10.0.0.9:80" },
			[]string{`spec.redirects[1].to.address: "10.0.0.9:80" is not an IP address: write one such as 10.0.0.9 or 2001:db8::9, and the port in to.port`}},
		{"loopback is another place in every pod", func(s *Sandbox) { s.Spec.Redirects[1].To.Address = "127.0.0.1" },
			[]string{"spec.redirects[1].to.address: 127.0.0.1 means something else on every node or in every pod: use an address that is the same for all"}},
		{"an address has no named ports", func(s *Sandbox) { s.Spec.Redirects[1].To.Port = ptr(intstr.FromString("http")) },
			[]string{`spec.redirects[1].to.port: "http" is a name, and an address has no named ports: use a number, 1 to 65535`}},
		{"port numbers have bounds", func(s *Sandbox) { s.Spec.Redirects[0].From.Port = ptr(intstr.FromInt32(0)) },
			[]string{"spec.redirects[0].from.port: 0 is neither a port's number, 1 to 65535, nor its name"}},
		{"enums are spelled as documented", func(s *Sandbox) {
			s.Spec.ExistingConnections = "idle"
			s.Spec.Redirects[0].Unavailable = "Fallback"
		}, []string{
			`spec.redirects[0].unavailable: "Fallback" is unknown: use Reject or Baseline`,
			`spec.existingConnections: "idle" is unknown: use Idle, All or Leave`,
		}},
		{"a fork names a workload that can be forked", func(s *Sandbox) { s.Spec.Forks[0].Workload = WorkloadRef{Kind: "Job"} },
			[]string{
				`spec.forks[0].workload.kind: "Job" cannot be forked: use Deployment, StatefulSet, DaemonSet, ReplicaSet or CronJob`,
				"spec.forks[0].workload.name: name the workload to fork",
			}},
		{"a mapped address is written as what it is", func(s *Sandbox) { s.Spec.Redirects[1].To.Address = "::ffff:10.0.0.9" },
			[]string{`spec.redirects[1].to.address: "::ffff:10.0.0.9" is an IPv4 address: write it as 10.0.0.9`}},
		{"every Service is observed with one word", func(s *Sandbox) { s.Spec.Observe, s.Spec.Propagate = []string{"*"}, PropagateTraceID }, nil},
		{"what is observed are Services", func(s *Sandbox) { s.Spec.Observe = []string{"cart", "cart.shop"} },
			[]string{`spec.observe[1]: "cart.shop" is not the name of a Service: write metadata.name of one in the sandbox's namespace, or "*" for all`}},
		{"a Service is observed once", func(s *Sandbox) { s.Spec.Observe = []string{"cart", "cart"} },
			[]string{`spec.observe[1]: "cart" is there twice: remove one of the two`}},
		{"all is not observed beside some", func(s *Sandbox) { s.Spec.Observe = []string{"*", "cart"} },
			[]string{`spec.observe: has "*", which means every Service already: remove the other entries or "*"`}},
		{"only a trace id stands for a key", func(s *Sandbox) { s.Spec.Propagate = "traceId" },
			[]string{`spec.propagate: "traceId" is unknown: use TraceID or leave it out`}},
		{"a container is overridden once", func(s *Sandbox) { s.Spec.Forks[0].Containers = []ContainerOverride{{Name: "a"}, {Name: "a"}} },
			[]string{`spec.forks[0].containers[1].name: "a" is there twice: merge the two entries`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := valid()
			tt.change(s)
			var got []string
			for _, err := range s.Validate() {
				got = append(got, err.Field+": "+err.Detail)
				if strings.Contains(err.Error(), "secret!") {
					t.Errorf("the error shows the routing key: %v", err)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}
