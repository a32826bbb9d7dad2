// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
)

// asked is a request to the sandbox.
type asked struct {
	trace string // empty where nobody has answered
	began time.Time
}

// Verify looks up in the ledger whether forks of the sandbox have answered each of a
// result's requests to it, and at which Services, and notes that in the result. Without it a key that was lost
// on the way makes the baseline answer both, and nothing differs. It stops at the
// first request that is not verified. The error is the context's, or says why the
// sandbox cannot be read; a ledger that cannot be read is a reason not to verify.
func Verify(ctx context.Context, c *cluster.Cluster, sb *v1alpha1.Sandbox, r *Result) error {
	r.Verified, r.NotVerified, r.Reached, r.Missed = false, nil, nil, nil
	if len(r.asked) == 0 {
		r.NotVerified = []string{"nothing was asked of the sandbox"}
		return nil
	}
	for _, a := range r.asked {
		if a.trace == "" {
			r.NotVerified = []string{"a request to the sandbox was answered by nobody"}
			return nil
		}
	}
	var missed []string
	for i, a := range r.asked {
		e, err := proof.Gather(ctx, c, sb, proof.Sent{Trace: a.trace, Began: a.began})
		if err != nil {
			return err
		}
		v := e.Judge()
		switch {
		case v.Verified:
			if missed = append(missed, v.Missed...); i == 0 {
				r.Reached = v.Reached
			}
			continue
		case e.Unread != "":
			r.NotVerified = []string{fmt.Sprintf("it cannot be told whether a fork answered: the ledger cannot be read: %s", e.Unread)}
		default:
			r.NotVerified = v.Doubts
		}
		r.TraceID, r.Reached = a.trace, nil
		return nil
	}
	slices.Sort(missed)
	r.Missed = slices.Compact(missed)
	r.Reached = slices.DeleteFunc(r.Reached, func(service string) bool { return slices.Contains(missed, service) })
	r.Verified = true
	return nil
}
