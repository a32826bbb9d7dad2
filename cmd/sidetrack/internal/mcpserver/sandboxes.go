// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// sandboxReply is what has become of a sandbox.
type sandboxReply struct {
	Sandbox   string          `json:"sandbox" jsonschema:"its handle, namespace/name"`
	Ready     bool            `json:"ready" jsonschema:"requests with its routing key reach its forks, on every node"`
	Why       string          `json:"why,omitempty" jsonschema:"what it waits for, or what is wrong with it"`
	Notes     []string        `json:"notes,omitempty" jsonschema:"what is in order and may not be what you want"`
	Forks     []forkReply     `json:"forks,omitempty"`
	Redirects []redirectReply `json:"redirects,omitempty" jsonschema:"the Services whose tagged traffic goes somewhere else"`
	Nodes     string          `json:"nodes,omitempty" jsonschema:"how many nodes have it in force"`
	// Uncovered is not for the short reply to leave out: it may spoil a request.
	Uncovered  int64            `json:"uncovered_connections,omitempty" jsonschema:"connections from before the sandbox that are still open; a request on one of them reaches what everybody shares"`
	ExpiresAt  string           `json:"expires_at,omitempty" jsonschema:"when it is deleted by itself"`
	RoutingKey string           `json:"routing_key,omitempty" jsonschema:"a secret: whoever has it reaches the forks"`
	Header     string           `json:"header,omitempty" jsonschema:"the HTTP header that makes a request one of this sandbox"`
	Conditions []conditionReply `json:"conditions,omitempty"`
}

type forkReply struct {
	Workload string `json:"workload"`
	Ready    string `json:"ready" jsonschema:"how many of its pods are ready"`
	Message  string `json:"message,omitempty"`
	Name     string `json:"name,omitempty" jsonschema:"the Deployment or Job that the fork is"`
	Changes  string `json:"changes,omitempty" jsonschema:"what differs in it"`
}

type redirectReply struct {
	Service   string `json:"service"`
	To        string `json:"to"`
	Endpoints int32  `json:"endpoints" jsonschema:"how many pods can answer"`
	Message   string `json:"message,omitempty"`
}

type conditionReply struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

type statusInput struct {
	Sandbox        string `json:"sandbox" jsonschema:"name, or namespace/name"`
	WaitSeconds    *int   `json:"wait_seconds,omitempty" jsonschema:"how long to wait until it is ready; 0 does not wait"`
	ShowRoutingKey bool   `json:"show_routing_key,omitempty" jsonschema:"also tell the secret routing key and the header that carries it, for requests of your own"`
	Detail         detail `json:"detail,omitempty" jsonschema:"full adds what differs in the forks, and the conditions"`
}

func (in statusInput) wait() time.Duration { return seconds(in.WaitSeconds) }

func sandboxStatus() tool {
	return define("sandbox_status", "Look at a sandbox", "",
		`Say whether a sandbox is ready, and if not, why: its forks, redirected Services and nodes. With wait_seconds it waits until the sandbox is ready.`,
		reads, func(p properties) {
			tuneDetail(p)
			between(p["wait_seconds"], 0, mostWait, 0)
		}, func(ctx context.Context, c call, in statusInput) (*sandboxReply, error) {
			sb, err := c.sandbox(ctx, in.Sandbox)
			if err != nil {
				return nil, err
			}
			r, err := waitReady(ctx, c, sb, in.wait(), in.Detail)
			if err != nil || !in.ShowRoutingKey {
				return r, err
			}
			if sb, err = c.sandbox(ctx, r.Sandbox); err != nil {
				return nil, err
			}
			key := sb.Status.RoutingKey
			if key == "" {
				return nil, &task.Failure{Kind: task.NotReady, Message: "sandbox " + r.Sandbox + " has no routing key yet", Remedy: "call sandbox_status with wait_seconds"}
			}
			names, err := exchange.NamesOf(sb)
			if err != nil {
				return nil, err
			}
			c.reveal()
			r.RoutingKey, r.Header = key, "baggage: "+names.Baggage(key)
			return r, nil
		})
}

// waitReady waits until a sandbox is ready, where it is to wait at all, and says
// what has become of it.
func waitReady(ctx context.Context, c call, sb *v1alpha1.Sandbox, limit time.Duration, d detail) (*sandboxReply, error) {
	if limit > 0 {
		o := sandbox.DefaultWait()
		o.Timeout = limit
		ready, err := sandbox.Wait(ctx, c.Cluster, sb.Namespace, sb.Name, o, c.progress)
		c.hide(ready)
		var f *task.Failure
		if errors.As(err, &f) && f.Kind == task.NotReady {
			f.Remedy = "call create_sandbox with update: true to mend it; if it only needs more time, call sandbox_status with wait_seconds"
		}
		if err != nil {
			return nil, err
		}
		sb = ready
	}
	return sandboxOf(sb, d), nil
}

func readiness(sb *v1alpha1.Sandbox) (ready bool, why string) {
	c := meta.FindStatusCondition(sb.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case sb.DeletionTimestamp != nil:
		return false, "it is being deleted"
	case c == nil || c.ObservedGeneration != sb.Generation:
		return false, "the controller has not looked at it yet"
	case c.Status == metav1.ConditionTrue:
		return true, ""
	}
	return false, cmp.Or(strings.TrimSpace(c.Message), c.Reason)
}

func sandboxOf(sb *v1alpha1.Sandbox, d detail) *sandboxReply {
	r := &sandboxReply{Sandbox: handle(sb.Namespace, sb.Name), Uncovered: sb.Status.UncoveredConnections}
	r.Ready, r.Why = readiness(sb)
	for i, f := range sb.Status.Forks {
		v := forkReply{Workload: sandbox.Name(f.Workload), Ready: fmt.Sprintf("%d of %d", f.Ready, f.Replicas), Message: f.Message}
		if d == full {
			v.Name = f.Name
			if i < len(sb.Spec.Forks) {
				v.Changes = changes(sb.Spec.Forks[i])
			}
		}
		r.Forks = append(r.Forks, v)
	}
	for _, s := range sb.Status.Redirects {
		r.Redirects = append(r.Redirects, redirectOf(s))
	}
	if r.Ready {
		r.Notes = unreached(sb)
	}
	if n := sb.Status.Nodes; n != nil {
		r.Nodes = fmt.Sprintf("%d of %d", n.Programmed, n.Total)
	}
	if t := sb.Status.ExpiresAt; t != nil {
		r.ExpiresAt = t.UTC().Format(time.RFC3339)
	}
	if d == full {
		for _, c := range sb.Status.Conditions {
			r.Conditions = append(r.Conditions, conditionReply{c.Type, string(c.Status), c.Reason, c.Message})
		}
	}
	return r
}

// unreached are forks that no Service leads to: they run, and no request can be sent to
// them.
func unreached(sb *v1alpha1.Sandbox) []string {
	var notes []string
	for _, f := range sb.Status.Forks {
		name := sandbox.Name(f.Workload)
		if !slices.ContainsFunc(sb.Status.Redirects, func(r v1alpha1.RedirectStatus) bool { return r.Fork == name }) {
			notes = append(notes, "no Service selects the pods of "+name+": no request reaches its fork, which only makes calls of its own")
		}
	}
	return notes
}

func redirectOf(s v1alpha1.RedirectStatus) redirectReply {
	r := redirectReply{Service: s.From.Service, Endpoints: s.Endpoints, Message: s.Message}
	if s.From.Port != nil {
		r.Service += ":" + s.From.Port.String()
	}
	switch {
	case s.Fork != "":
		r.To = "fork of " + s.Fork
	case s.To.Address != "":
		r.To = s.To.Address
	case s.To.Namespace != "":
		r.To = s.To.Namespace + "/" + s.To.Service
	default:
		r.To = s.To.Service
	}
	if s.To.Port != nil && s.Fork == "" {
		r.To += ":" + s.To.Port.String()
	}
	return r
}

// changes is what differs in a fork. Variables may be secrets: only their names are
// told.
func changes(f v1alpha1.Fork) string {
	var all []string
	for _, c := range f.Containers {
		if c.Image != "" {
			all = append(all, c.Name+" runs "+c.Image)
		}
		for _, e := range c.Env {
			all = append(all, c.Name+" has another "+e.Name)
		}
		for _, e := range c.RemoveEnv {
			all = append(all, c.Name+" lacks "+e)
		}
	}
	if f.Patch != nil {
		all = append(all, "its pod template is patched")
	}
	return strings.Join(all, "; ")
}

func (r *sandboxReply) text() string {
	var b strings.Builder
	switch {
	case r.Ready && len(r.Redirects) == 0:
		fmt.Fprintf(&b, "Sandbox %s is ready, and no Service leads to its forks.\n", r.Sandbox)
	case r.Ready:
		fmt.Fprintf(&b, "Sandbox %s is ready: requests with its routing key reach its forks.\n", r.Sandbox)
	default:
		fmt.Fprintf(&b, "Sandbox %s is not ready: %s.\n", r.Sandbox, r.Why)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "NOTE: %s\n", n)
	}
	for _, f := range r.Forks {
		fmt.Fprintf(&b, "- fork of %s: %s pods ready", f.Workload, f.Ready)
		for _, s := range []string{f.Message, f.Changes} {
			if s != "" {
				b.WriteString("; " + s)
			}
		}
		b.WriteString("\n")
	}
	for _, s := range r.Redirects {
		fmt.Fprintf(&b, "- Service %s goes to %s (%d endpoints)", s.Service, s.To, s.Endpoints)
		if s.Message != "" {
			b.WriteString("; " + s.Message)
		}
		b.WriteString("\n")
	}
	if r.Nodes != "" {
		fmt.Fprintf(&b, "- in force on %s nodes\n", r.Nodes)
	}
	if r.Uncovered > 0 {
		fmt.Fprintf(&b, "- %d connections from before the sandbox are still open: a request on one of them does not reach the forks\n", r.Uncovered)
	}
	if r.ExpiresAt != "" {
		fmt.Fprintf(&b, "- deleted by itself at %s\n", r.ExpiresAt)
	}
	for _, c := range r.Conditions {
		fmt.Fprintf(&b, "- %s is %s, %s: %s\n", c.Type, c.Status, c.Reason, c.Message)
	}
	if r.Header != "" {
		fmt.Fprintf(&b, "- HTTP header of its requests: %s\n", r.Header)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

type listInput struct {
	Namespace     string `json:"namespace,omitempty" jsonschema:"Kubernetes namespace; the one of the server's kubeconfig when left out"`
	AllNamespaces bool   `json:"all_namespaces,omitempty" jsonschema:"look in all of them"`
	Detail        detail `json:"detail,omitempty" jsonschema:"short lists at most 40 sandboxes, full lists all"`
}

type listReply struct {
	Sandboxes []listItem `json:"sandboxes"`
	Omitted   int        `json:"omitted,omitempty" jsonschema:"how many more there are"`
	Where     string     `json:"where" jsonschema:"where was looked"`
}

type listItem struct {
	Sandbox   string   `json:"sandbox" jsonschema:"its handle, namespace/name"`
	Ready     bool     `json:"ready"`
	Why       string   `json:"why,omitempty" jsonschema:"why it is not ready"`
	Forks     []string `json:"forks,omitempty" jsonschema:"the workloads that it has forks of"`
	CreatedAt string   `json:"created_at"`
	ExpiresAt string   `json:"expires_at,omitempty"`
}

func listSandboxes() tool {
	return define("list_sandboxes", "List sandboxes", "",
		`List the sandboxes of a Kubernetes namespace, or of all: which are ready, what they fork, when they end.`,
		reads, tuneDetail, func(ctx context.Context, c call, in listInput) (*listReply, error) {
			namespace := cmp.Or(in.Namespace, c.Namespace)
			r := &listReply{Sandboxes: []listItem{}, Where: "namespace " + namespace}
			if in.AllNamespaces {
				namespace, r.Where = metav1.NamespaceAll, "all namespaces"
			}
			all, err := sandbox.List(ctx, c.Cluster, namespace, "")
			var f *task.Failure
			if in.AllNamespaces && apierrors.IsForbidden(err) && errors.As(err, &f) {
				f.Remedy = "leave all_namespaces out, and name a namespace"
			}
			if err != nil {
				return nil, err
			}
			for i := range all {
				if in.Detail != full && i == mostRows {
					r.Omitted = len(all) - i
					break
				}
				sb := &all[i]
				v := listItem{Sandbox: handle(sb.Namespace, sb.Name), CreatedAt: sb.CreationTimestamp.UTC().Format(time.RFC3339)}
				v.Ready, v.Why = readiness(sb)
				for _, f := range sb.Spec.Forks {
					v.Forks = append(v.Forks, sandbox.Name(f.Workload))
				}
				if t := sb.Status.ExpiresAt; t != nil {
					v.ExpiresAt = t.UTC().Format(time.RFC3339)
				}
				r.Sandboxes = append(r.Sandboxes, v)
			}
			return r, nil
		})
}

func (r *listReply) text() string {
	if len(r.Sandboxes) == 0 {
		return "There are no sandboxes in " + r.Where + "."
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Sandboxes in %s:\n", r.Where)
	for _, v := range r.Sandboxes {
		state := "ready"
		if !v.Ready {
			state = "not ready: " + v.Why
		}
		fmt.Fprintf(&b, "- %s: %s", v.Sandbox, state)
		if len(v.Forks) > 0 {
			fmt.Fprintf(&b, "; forks %s", strings.Join(v.Forks, ", "))
		}
		if v.ExpiresAt != "" {
			fmt.Fprintf(&b, "; ends %s", v.ExpiresAt)
		}
		b.WriteString("\n")
	}
	if r.Omitted > 0 {
		fmt.Fprintf(&b, "and %d more: ask with detail: full\n", r.Omitted)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

type deleteInput struct {
	Sandbox string `json:"sandbox" jsonschema:"name, or namespace/name"`
}

type deleteReply struct {
	Sandbox string `json:"sandbox"`
	Deleted bool   `json:"deleted" jsonschema:"false where there was none"`
	Note    string `json:"note,omitempty"`
}

// deletion is how long the end of a sandbox is waited for.
const deletion = 45 * time.Second

func deleteSandbox() tool {
	return define("delete_sandbox", "Delete a sandbox", "clean up",
		`Delete a sandbox and its forks, and wait until it is gone. What everybody shares is not touched. It is no failure when there is none of that name.`,
		destroys, nil, func(ctx context.Context, c call, in deleteInput) (*deleteReply, error) {
			namespace, name, err := parseHandle(in.Sandbox)
			if err != nil {
				return nil, err
			}
			r := &deleteReply{Sandbox: handle(cmp.Or(namespace, c.Namespace), name)}
			err = sandbox.Delete(ctx, c.Cluster, namespace, name)
			// What is not found may also be the kind, where Sidetrack is not installed.
			var status apierrors.APIStatus
			if errors.As(err, &status) && apierrors.IsNotFound(err) && status.Status().Details != nil && status.Status().Details.Name != "" {
				r.Note = asTools(err.Error())
				return r, nil
			}
			if err == nil {
				err = sandbox.WaitGone(ctx, c.Cluster, namespace, name, deletion)
			}
			r.Deleted = true
			return r, err
		})
}

func (r *deleteReply) text() string {
	if !r.Deleted {
		return "Nothing to delete: " + r.Note
	}
	return "Sandbox " + r.Sandbox + " is deleted, and its forks with it."
}
