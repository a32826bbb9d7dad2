// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

func TestAPodBesideTheSandboxWaitsUntilWhatIsRedirectedIsCaptured(t *testing.T) {
	service := func(name, ip string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.ServiceSpec{ClusterIP: ip, Ports: ports}}
	}
	web, admin := corev1.ServicePort{Name: "web", Port: 80}, corev1.ServicePort{Name: "admin", Port: 81, Protocol: corev1.ProtocolTCP}
	dns := corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}
	number, udp := int32(8080), corev1.ProtocolUDP
	slice := func(name, of, address string, protocol *corev1.Protocol) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: of}},
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}},
			Ports: []discoveryv1.EndpointPort{{Port: &number, Protocol: protocol}}}
	}
	elsewhere := service("web", "10.9.9.9", web)
	elsewhere.Namespace = "other"
	c := &cluster.Cluster{Objects: fake.NewClientBuilder().WithObjects(
		service("udp", "10.0.0.1", dns), service("web", "10.0.0.2", dns, web, admin), service("six", "fd00::3", web), elsewhere,
		service("headless", corev1.ClusterIPNone, web), slice("headless-1", "headless", "10.1.0.1", &udp), slice("headless-2", "headless", "10.1.0.2", nil),
		&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "name"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com", Ports: []corev1.ServicePort{web}}},
	).Build()}
	redirect := func(name, port string) v1alpha1.RedirectStatus {
		r := v1alpha1.RedirectStatus{From: v1alpha1.RedirectFrom{Service: name}}
		if port != "" {
			p := intstr.Parse(port)
			r.From.Port = &p
		}
		return r
	}
	refused := redirect("web", "")
	refused.Refused = true
	for _, tt := range []struct {
		name      string
		redirects []v1alpha1.RedirectStatus
		observe   []string
		want      string
	}{
		{"a Service", []v1alpha1.RedirectStatus{redirect("web", "")}, nil, "10.0.0.2:80"},
		{"a port by its name", []v1alpha1.RedirectStatus{redirect("web", "admin")}, nil, "10.0.0.2:81"},
		{"a port by its number", []v1alpha1.RedirectStatus{redirect("web", "81")}, nil, "10.0.0.2:81"},
		{"the first that can be connected to", []v1alpha1.RedirectStatus{redirect("gone", ""), redirect("udp", ""), redirect("headless", ""), redirect("web", "dns"), redirect("six", "")}, nil, "[fd00::3]:80"},
		{"one that is observed", []v1alpha1.RedirectStatus{redirect("udp", "")}, []string{"web"}, "10.0.0.2:80"},
		{"all that are", nil, []string{"*"}, "fd00"},
		{"one without an address of its own", []v1alpha1.RedirectStatus{redirect("headless", "")}, nil, "10.1.0.2:8080"},
		{"one that is a name", []v1alpha1.RedirectStatus{redirect("name", "")}, nil, ""},
		{"what is refused", []v1alpha1.RedirectStatus{refused}, nil, ""},
		{"nothing", nil, nil, ""},
	} {
		sb := &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pr-1"}, Spec: v1alpha1.SandboxSpec{Observe: tt.observe}, Status: v1alpha1.SandboxStatus{Redirects: tt.redirects}}
		got := capturedAddress(t.Context(), c, sb)
		if got != tt.want && (tt.want == "" || !strings.Contains(got, tt.want)) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
		args := pod(Options{Sandbox: sb}, got).Spec.Containers[0].Args
		if waits := slices.Contains(args, "--covered-address="+got) && slices.Contains(args, "--covered=30s"); waits != (got != "") {
			t.Errorf("%s: the pod's arguments are %q", tt.name, args)
		}
	}
}
