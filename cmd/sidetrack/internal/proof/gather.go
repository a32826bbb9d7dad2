// SPDX-License-Identifier: Apache-2.0

package proof

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/hops"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Calls of a request may outlast its answer. While nodes say that some are under way
// they are asked again, and so, once, is a node that has not answered.
const (
	settle     = 300 * time.Millisecond
	settleSoon = 50 * time.Millisecond // the first time: many records are made a moment after the answer
	settleMost = 5 * time.Second
)

// Sent is a request that is to be proved.
type Sent struct {
	// Trace is its traceparent's; no other request is of it that did not come of this
	// one.
	Trace string
	// Began is when that was, with the monotonic clock.
	Began time.Time
}

// Gather reads the records of a request's trace, and how far nodes say that these can
// be relied on: at once where all calls of it are over. It waits some seconds for
// others. sb is the sandbox as it was read before the request was sent.
func Gather(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, s Sent) (*Evidence, error) {
	e := &Evidence{Sent: s, Before: sb, Sandbox: sb}
	of := hops.Of{Namespace: sb.Namespace, Name: sb.Name}
	deadline := time.Now().Add(settleMost)
	pause := settleSoon
	for again := false; ; again, pause = true, settle {
		list, err := hops.Read(ctx, c, of, ledger.Options{Trace: s.Trace, Limit: ledger.MaxLimit})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			e.Unread = err.Error()
			break
		}
		e.Records, e.Nodes, e.Age = list.Items, list.Nodes, time.Since(s.Began)
		waits := slices.ContainsFunc(list.Nodes, func(n ledger.NodeAnswer) bool {
			return !n.Answered && !again || n.Trace != nil && n.Trace.Open > 0
		})
		if !waits || time.Now().After(deadline) {
			break
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
	var err error
	if e.Sandbox, err = sandbox.Get(ctx, c, sb.Namespace, sb.Name); err != nil {
		return nil, err
	}
	e.Services = named(ctx, c, e.Sandbox)
	return e, ctx.Err()
}

// named reads the Services of which redirects name a port, which has a number there. A
// Service that cannot be read is left out: whatever its port is may be the redirect's.
func named(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) map[string]*corev1.Service {
	all := map[string]*corev1.Service{}
	for _, r := range sb.Status.Redirects {
		if r.From.Port == nil || r.From.Port.Type != intstr.String || all[r.From.Service] != nil {
			continue
		}
		var svc corev1.Service
		if c.Objects.Get(ctx, client.ObjectKey{Namespace: sb.Namespace, Name: r.From.Service}, &svc) == nil {
			all[r.From.Service] = &svc
		}
	}
	return all
}

// coverage is how long connections from before the sandbox are waited for: nodes
// close them as soon as they are idle.
const coverage = 15 * time.Second

// Covered waits until a request cannot reach the baseline by a connection from
// before the sandbox, for as long as that may help, and returns the sandbox as it is
// then, which is what Gather is to know of. That they are still open is no error: Judge
// says so.
func Covered(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, progress task.Progress) (*v1alpha1.Sandbox, error) {
	told := task.NewChanges(progress)
	for deadline := time.Now().Add(coverage); sb.Status.UncoveredConnections > 0 && time.Now().Before(deadline); {
		told.Report(task.Event{Subject: "coverage", State: fmt.Sprintf("%d connections from before the sandbox are open", sb.Status.UncoveredConnections)})
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settle):
		}
		var err error
		if sb, err = sandbox.Get(ctx, c, sb.Namespace, sb.Name); err != nil {
			return nil, err
		}
	}
	return sb, nil
}
