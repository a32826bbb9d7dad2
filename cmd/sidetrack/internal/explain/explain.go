// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/health"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Request is what to explain.
type Request struct {
	// Namespace is the sandbox's, the connection's when it is empty.
	Namespace, Sandbox string
	// Target is a Service's name, SERVICE:PORT, or a URL whose host begins with it.
	// Empty: only what holds for all Services.
	Target string
	// From is the pod that calls, or KIND/NAME of a workload. Empty: any.
	From string
	// TraceID has the ledger's records of that trace looked at only.
	TraceID string
}

// Verdict is how a step is.
type Verdict string

// The verdicts. Unknown is what the user may not see, Note something to know.
const (
	Holds   Verdict = "ok"
	Fails   Verdict = "NO"
	Unknown Verdict = "unknown"
	Note    Verdict = "note"
)

// Step is one of the things that a request meets.
type Step struct {
	// Topic is key, sandbox, service, capture, pod, node, coverage, fork, propagation
	// or ledger.
	Topic   string  `json:"topic"`
	Verdict Verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	// Remedy says what to do where it does not hold.
	Remedy string `json:"remedy,omitempty"`
}

// Explanation is the steps, and what they come to.
type Explanation struct {
	Summary string `json:"summary"`
	// Reaches says that nothing is known that keeps a tagged request from the fork.
	Reaches bool   `json:"reaches"`
	Steps   []Step `json:"steps"`
	// Records are the newest records of the ledger that are about it.
	Records []ledger.Record `json:"records,omitempty"`
}

// maxRecords is how many records of the ledger are looked at, and shown how many.
const (
	maxRecords   = 2000
	shownRecords = 5
)

type explainer struct {
	c       *cluster.Cluster
	r       Request
	sb      *v1alpha1.Sandbox
	service string
	port    string
	node    string
	out     Explanation
}

// Explain looks at each step.
func Explain(ctx context.Context, c *cluster.Cluster, r Request) (*Explanation, error) {
	sb, err := sandbox.Get(ctx, c, r.Namespace, r.Sandbox)
	if err != nil {
		return nil, err
	}
	e := explainer{c: c, r: r, sb: sb}
	if e.service, e.port, err = target(r.Target, sb.Namespace); err != nil {
		return nil, err
	}
	e.key()
	e.sandbox()
	redirect, err := e.redirect(ctx)
	if err != nil {
		return nil, err
	}
	if err := e.pod(ctx); err != nil {
		return nil, err
	}
	e.nodes(ctx)
	e.forks(redirect)
	e.ledger(ctx)
	e.summarise(redirect)
	return &e.out, nil
}

func (e *explainer) say(topic string, v Verdict, remedy, format string, args ...any) {
	e.out.Steps = append(e.out.Steps, Step{topic, v, fmt.Sprintf(format, args...), remedy})
}

// target reads SERVICE, SERVICE:PORT or a URL.
func target(text, namespace string) (service, port string, err error) {
	host := text
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return "", "", task.Usagef("%q is not a URL", text)
		}
		host = u.Host
		if u.Port() == "" {
			host += map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
		}
	}
	name, port, err := splitPort(host)
	if err != nil {
		return "", "", task.Usagef("%q: %v", text, err)
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return "", "", &task.Failure{Kind: task.Usage, Message: name + " is an address", Remedy: "name the Service that has it, as SERVICE:PORT"}
	}
	parts := strings.Split(name, ".")
	if len(parts) > 1 && parts[1] != namespace {
		return "", "", &task.Failure{
			Kind:    task.Usage,
			Message: fmt.Sprintf("%s is in namespace %s, and the sandbox in %s", name, parts[1], namespace),
			Remedy:  "a sandbox redirects Services of its own namespace: name one of these",
		}
	}
	return parts[0], port, nil
}

// splitPort takes HOST:PORT apart, where the port and an address's brackets may be left
// out.
func splitPort(host string) (name, port string, err error) {
	if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ":") {
		return host, "", nil
	}
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		return host[1 : len(host)-1], "", nil
	}
	return net.SplitHostPort(host)
}

func (e *explainer) key() {
	if e.sb.Status.RoutingKey == "" {
		e.say("key", Fails, "sidetrack sandbox wait "+e.sb.Name, "the sandbox has no routing key yet")
		return
	}
	if n := e.sb.Status.KeyNames; n != nil && n.Split {
		e.say("key", Fails, "ask whoever runs the cluster; sidetrack doctor says what the agents have", "nodes look for routing keys under different names, so that a request may lose its own on the way: %s", n.Message)
	}
	e.say("key", Holds, "", "a request is tagged by the header that sidetrack sandbox key %s --header prints; one from a pod with the labels %s=%s and %s=true is tagged by itself; another key is no key",
		e.sb.Name, v1alpha1.SandboxLabel, e.sb.Name, v1alpha1.InjectLabel)
}

func (e *explainer) sandbox() {
	for _, kind := range []string{v1alpha1.ConditionAccepted, v1alpha1.ConditionForksReady, v1alpha1.ConditionProgrammed} {
		var found *metav1.Condition
		for i := range e.sb.Status.Conditions {
			if c := &e.sb.Status.Conditions[i]; c.Type == kind && c.ObservedGeneration == e.sb.Generation {
				found = c
			}
		}
		switch {
		case found == nil:
			e.say("sandbox", Fails, "sidetrack doctor says whether there is a controller", "%s: the controller has not looked at it yet", kind)
		case found.Status != metav1.ConditionTrue:
			e.say("sandbox", Fails, "sidetrack sandbox wait "+e.sb.Name+" has the containers' own words", "%s is False (%s): %s", kind, found.Reason, found.Message)
		default:
			e.say("sandbox", Holds, "", "%s: %s", kind, found.Message)
		}
	}
}

// redirect says whether the Service is redirected, and whether it is one that can
// be captured.
func (e *explainer) redirect(ctx context.Context) (*v1alpha1.RedirectStatus, error) {
	if e.service == "" {
		// Of one that is not accepted this is not known, and why it is not has been said.
		if c := meta.FindStatusCondition(e.sb.Status.Conditions, v1alpha1.ConditionAccepted); len(e.sb.Status.Redirects) == 0 && c != nil && c.Status == metav1.ConditionTrue {
			e.say("service", Fails, "fork a workload whose pods a Service selects, or redirect a Service", "no Service leads to a fork: none selects the pods of what the sandbox forks, and it redirects none")
		}
		for i := range e.sb.Status.Redirects {
			e.say("service", Note, "", "redirect %s", health.Redirect(&e.sb.Status.Redirects[i]))
		}
		return nil, nil
	}
	var s corev1.Service
	err := e.c.Objects.Get(ctx, client.ObjectKey{Namespace: e.sb.Namespace, Name: e.service}, &s)
	if apierrors.IsNotFound(err) {
		e.say("service", Fails, "correct the name: kubectl get services -n "+e.sb.Namespace, "there is no Service %s in namespace %s", e.service, e.sb.Namespace)
		return nil, nil
	}
	if err != nil {
		return nil, cluster.Explain(err, "read Service "+e.service)
	}
	var found *v1alpha1.RedirectStatus
	for i := range e.sb.Status.Redirects {
		r := &e.sb.Status.Redirects[i]
		if r.From.Service == e.service && (e.port == "" || samePort(&s, r, e.port)) {
			found = r
			break
		}
	}
	switch {
	case found == nil:
		e.say("service", Fails, "fork a workload that it selects, or redirect it with --redirect "+e.service+"=…", "the sandbox does not redirect Service %s: tagged requests to it are answered by the baseline, as meant; it redirects %s", e.service, e.redirected())
	case found.Refused:
		e.say("service", Fails, "see the sandbox's condition Accepted", "its tagged traffic is refused: %s", found.Message)
	default:
		e.say("service", Holds, "", "redirect %s", health.Redirect(found))
	}
	e.capture(&s)
	return found, nil
}

func (e *explainer) redirected() string {
	var names []string
	for i := range e.sb.Status.Redirects {
		names = append(names, e.sb.Status.Redirects[i].From.Service)
	}
	return cmp.Or(strings.Join(names, ", "), "nothing")
}

// samePort reports whether a redirect means a port that is given by number or
// name.
func samePort(s *corev1.Service, r *v1alpha1.RedirectStatus, port string) bool {
	if r.From.Port == nil || r.From.Port.String() == port {
		return true
	}
	for _, p := range s.Spec.Ports {
		if (p.Name == port || fmt.Sprint(p.Port) == port) && (p.Name == r.From.Port.String() || fmt.Sprint(p.Port) == r.From.Port.String()) {
			return true
		}
	}
	return false
}

func (e *explainer) capture(s *corev1.Service) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		e.say("capture", Fails, "redirect a Service that has pods", "Service %s is a name for %s, whose connections are not captured", s.Name, s.Spec.ExternalName)
		return
	}
	where := "its pods' addresses"
	if s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone {
		where = "its cluster IP " + s.Spec.ClusterIP + " and its pods' addresses"
	}
	e.say("capture", Holds, "", "connections from pods to %s are captured; those to external, load-balancer and node-port addresses are not", where)
	for _, p := range s.Spec.Ports {
		if e.port != "" && e.port != p.Name && e.port != fmt.Sprint(p.Port) {
			continue
		}
		if encrypted(&p) {
			e.say("capture", Note, "call from a pod of the sandbox, whose flows are redirected whatever is in them", "port %s seems to be encrypted: a key inside TLS cannot be read, and such a connection goes to the baseline", cmp.Or(p.Name, fmt.Sprint(p.Port)))
		}
		if p.Protocol == corev1.ProtocolSCTP {
			e.say("capture", Fails, "", "port %s is SCTP, which is not redirected", cmp.Or(p.Name, fmt.Sprint(p.Port)))
		}
	}
}

func encrypted(p *corev1.ServicePort) bool {
	app := ""
	if p.AppProtocol != nil {
		app = *p.AppProtocol
	}
	return p.Port == 443 || p.Port == 8443 || strings.HasPrefix(p.Name, "https") || strings.HasPrefix(p.Name, "tls") || app == "https" || app == "kubernetes.io/wss"
}

// pod looks at who calls.
func (e *explainer) pod(ctx context.Context) error {
	if e.r.From == "" {
		return nil
	}
	p, err := e.caller(ctx)
	if err != nil || p == nil {
		return err
	}
	e.node = p.Spec.NodeName
	switch own := p.Labels[v1alpha1.SandboxLabel]; {
	case own == e.sb.Name && p.Labels[v1alpha1.InjectLabel] == "true":
		e.say("pod", Holds, "", "%s is the sandbox's: its HTTP requests get the key, its other flows follow the redirects", p.Name)
	case own == e.sb.Name:
		e.say("pod", Holds, "", "%s is the sandbox's: its flows follow the redirects whatever is in them", p.Name)
	case own != "":
		e.say("pod", Fails, "call from another pod", "%s is sandbox %s's: keys of other sandboxes count for nothing in its requests", p.Name, own)
	default:
		e.say("pod", Holds, "", "%s is no sandbox's: its requests are tagged by the key that they carry, and by nothing else", p.Name)
	}
	if p.Spec.HostNetwork {
		e.say("pod", Note, "", "%s is on the host's network: it is known by its cgroup, which takes cgroup version 2", p.Name)
	}
	if p.Status.Phase != corev1.PodRunning {
		e.say("pod", Fails, "", "%s does not run: it is %s", p.Name, p.Status.Phase)
	}
	return nil
}

// caller finds the pod, or one of the workload's.
func (e *explainer) caller(ctx context.Context) (*corev1.Pod, error) {
	var p corev1.Pod
	if !strings.Contains(e.r.From, "/") {
		err := e.c.Objects.Get(ctx, client.ObjectKey{Namespace: e.sb.Namespace, Name: e.r.From}, &p)
		if err == nil {
			return &p, nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, cluster.Explain(err, "read pod "+e.r.From)
		}
	}
	pods, err := sandbox.PodsOf(ctx, e.c, e.sb.Namespace, e.r.From)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		e.say("pod", Fails, "correct the name", "there is no pod %s in namespace %s, and none of such a workload", e.r.From, e.sb.Namespace)
		return nil, nil
	}
	return &pods[0], nil
}

// nodes looks at where calls come from.
func (e *explainer) nodes(ctx context.Context) {
	s, err := health.Look(ctx, e.c, e.sb.Namespace, e.sb.Name)
	switch {
	case err != nil:
		e.say("node", Unknown, "", "%v", err)
		return
	case s.NodesHidden != "":
		e.say("node", Unknown, "", "%s", s.NodesHidden)
		return
	}
	seen := false
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if e.node != "" && n.Name != e.node {
			continue
		}
		seen = true
		switch {
		case !n.OK:
			e.say("node", Fails, "look at the agent's pod there (app.kubernetes.io/component=agent)", "%s: %s; what pods there send reaches the baseline", n.Name, strings.Join(append([]string{n.State}, n.Problems...), "; "))
		case len(n.Behind) > 0:
			e.say("node", Note, "sidetrack sandbox wait "+e.sb.Name, "%s has not said yet that it has the sandbox's newest version in force", n.Name)
		default:
			e.say("node", Holds, "", "%s: %d pods are covered", n.Name, n.Covered)
		}
	}
	if !seen && e.node != "" {
		e.say("node", Fails, "sidetrack doctor", "%s has no agent: what pods there send reaches the baseline", e.node)
	}
	e.say("coverage", Note, "send the request over a new connection, or see connections from before in docs/limits.md",
		"a connection that was opened before the sandbox, and is never idle, stays with the baseline; existingConnections is %s", cmp.Or(e.sb.Spec.ExistingConnections, v1alpha1.ExistingIdle))
}

// forks looks at who answers.
func (e *explainer) forks(r *v1alpha1.RedirectStatus) {
	if r == nil || r.Refused {
		return
	}
	switch {
	case r.Endpoints > 0:
		e.say("fork", Holds, "", "%d ready endpoints answer", r.Endpoints)
	case r.Unavailable == v1alpha1.UnavailableBaseline:
		e.say("fork", Fails, "see its pods: sidetrack logs "+e.sb.Name, "no endpoint is ready, and unavailable: Baseline lets the baseline answer")
	default:
		e.say("fork", Fails, "see its pods: sidetrack logs "+e.sb.Name, "no endpoint is ready: tagged requests get a 503, tagged flows are refused")
	}
}
