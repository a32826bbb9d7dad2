// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Of names whose ledger it is.
type Of struct {
	// Namespace is the connection's when it is empty.
	Namespace string
	// Resource is "sandboxes", when it is empty, or "routegroups".
	Resource string
	Name     string
}

func (of Of) resource() string {
	if of.Resource == "" {
		return "sandboxes"
	}
	return of.Resource
}

func (of Of) path(c *cluster.Cluster, o *ledger.Options) string {
	namespace := of.Namespace
	if namespace == "" {
		namespace = c.Namespace
	}
	return o.Path(of.resource(), namespace, of.Name)
}

// Read reads the records that there are.
func Read(ctx context.Context, c *cluster.Cluster, of Of, o ledger.Options) (*ledger.RecordList, error) {
	o.Follow = false
	res := c.Core.CoreV1().RESTClient().Get().RequestURI(of.path(c, &o)).Do(ctx)
	// Its error has the server's words, which Raw's has not.
	if err := res.Error(); err != nil {
		return nil, explain(err, of)
	}
	text, err := res.Raw()
	if err != nil {
		return nil, explain(err, of)
	}
	var list ledger.RecordList
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("read the ledger of %s: %w", of.Name, err)
	}
	return &list, nil
}

// maxMessage is the longest part of a stream.
const maxMessage = 64 << 20

// Follow calls f with what there is, and then with what comes, until the context
// ends, f fails, or the ledger says that the user may not read any more, or that others
// want to. When the stream breaks off it goes on where it was.
func Follow(ctx context.Context, c *cluster.Cluster, of Of, o ledger.Options, f func(*ledger.RecordList) error) error {
	o.Follow = true
	failures := 0
	before := newSeen()
	for {
		got, err := once(ctx, c, of, o, func(list *ledger.RecordList) error {
			before.begins(list)
			list.Items = before.fresh(list.Items)
			return f(list)
		})
		var told toldError
		var ended endedError
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &told):
			return told.err
		case errors.As(err, &ended):
			if apierrors.IsForbidden(ended) || apierrors.IsTooManyRequests(ended) {
				return explain(err, of)
			}
			wait = endedPause
		case err != nil && (!got && failures == 0 || failures > 10):
			return explain(err, of)
		}
		failures++
		if got {
			failures = 1
		}
		if before.broken() {
			// As much as may have come meanwhile, and what has come before with it.
			o.Limit = ledger.MaxLimit
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(wait, min(time.Duration(failures)*200*time.Millisecond, 2*time.Second))):
		}
	}
}

// toldError is an error of whoever is given the records.
type toldError struct{ err error }

func (e toldError) Error() string { return e.err.Error() }

// endedError is why the ledger has ended a stream.
type endedError struct{ *apierrors.StatusError }

// endedPause is when a stream goes on that the ledger has ended: in a moment it would
// have to do so again.
const endedPause = 2 * time.Second

// once reads one stream to its end, and reports whether anything came.
func once(ctx context.Context, c *cluster.Cluster, of Of, o ledger.Options, f func(*ledger.RecordList) error) (got bool, err error) {
	stream, err := c.Core.CoreV1().RESTClient().Get().RequestURI(of.path(c, &o)).Stream(ctx)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	in := bufio.NewScanner(stream)
	in.Buffer(make([]byte, 64<<10), maxMessage)
	for in.Scan() {
		if len(in.Bytes()) == 0 {
			continue
		}
		var list ledger.RecordList
		if err := json.Unmarshal(in.Bytes(), &list); err != nil {
			return got, fmt.Errorf("a part of the stream cannot be read: %w", err)
		}
		got = true
		if err := f(&list); err != nil {
			return got, toldError{err}
		}
		if list.Ended != nil {
			return got, endedError{&apierrors.StatusError{ErrStatus: *list.Ended}}
		}
	}
	if err := in.Err(); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return got, err
	}
	return got, nil
}

// explain tells a cluster without a ledger from a sandbox that is not there.
func explain(err error, of Of) error {
	var status apierrors.APIStatus
	if apierrors.IsNotFound(err) && errors.As(err, &status) {
		if d := status.Status().Details; d == nil || d.Group == "" || d.Name == "" {
			return &task.Failure{
				Message: fmt.Sprintf("this cluster serves no ledger (%s)", ledger.APIVersion),
				Remedy:  "install a version of Sidetrack that has it; sidetrack doctor says what else is missing", Err: err,
			}
		}
	}
	if apierrors.IsServiceUnavailable(err) {
		return &task.Failure{
			Message: fmt.Sprintf("the ledger does not answer: %v", err),
			Remedy:  "kubectl get apiservice v1alpha1." + ledger.Group + " -o yaml says why", Err: err,
		}
	}
	if ended := (endedError{}); errors.As(err, &ended) && apierrors.IsTooManyRequests(err) {
		return &task.Failure{
			Message: fmt.Sprintf("the ledger has ended the stream of %s: %v", of.Name, err),
			Remedy:  "end other streams of yours, or begin again later", Err: err,
		}
	}
	if apierrors.IsForbidden(err) {
		return &task.Failure{
			Message: fmt.Sprintf("you may not read the ledger of %s: %v", of.Name, err),
			Remedy:  "whoever may get the Sandbox may read its ledger: ask for ClusterRole view in the namespace", Err: err,
		}
	}
	return cluster.Explain(err, "read the ledger of "+of.Name)
}
