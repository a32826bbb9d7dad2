// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// untilGone does something that goes on until it is interrupted, and ends it when the
// sandbox that it is about is gone, once rest has waited for what still comes then: nothing
// more would, for ever. A nil sandbox stands for what is not looked at.
func untilGone(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, rest func(context.Context, *cluster.Cluster, *v1alpha1.Sandbox), do func(context.Context) error) error {
	if sb == nil {
		return do(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	var gone error
	watching.Go(func() {
		if gone = sandbox.AwaitGone(ctx, c, sb); gone != nil {
			rest(ctx, c, sb)
			cancel(gone)
		}
	})
	err := do(ctx)
	cancel(nil)
	watching.Wait()
	if gone != nil {
		return gone
	}
	return err
}

// lateRecords waits for the ledger's last records of a sandbox.
func lateRecords(ctx context.Context, _ *cluster.Cluster, _ *v1alpha1.Sandbox) {
	select {
	case <-time.After(2 * time.Second):
	case <-ctx.Done():
	}
}

// lastLines waits for the last lines of a sandbox's forks: until their pods are gone, which
// takes as long as they have to end. Those of another sandbox of that name are not waited for.
func lastLines(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox) {
	var ours map[types.UID]bool
	for {
		pods, err := sandbox.Pods(ctx, c, sb)
		if err != nil {
			return
		}
		left := map[types.UID]bool{}
		for i := range pods {
			if id := pods[i].UID; ours == nil || ours[id] {
				left[id] = true
			}
		}
		if ours = left; len(left) == 0 {
			return
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}
