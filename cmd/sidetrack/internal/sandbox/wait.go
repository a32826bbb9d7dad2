// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// WaitOptions say how long to wait for a sandbox.
type WaitOptions struct {
	// Timeout is how long at most. Zero is for ever, as long as the context.
	Timeout time.Duration
	// FailAfter is how long something that waiting does not help against, such as
	// an image that is not there, may stand before the wait is given up. Zero gives
	// it up at once.
	FailAfter time.Duration
}

// DefaultWait is for people and models who want to know soon.
func DefaultWait() WaitOptions {
	return WaitOptions{Timeout: 5 * time.Minute, FailAfter: 5 * time.Second}
}

// Wait waits until a sandbox is Ready and returns it. What it waits for is
// reported. When it fails, the failure's details have what the containers of the
// forks say themselves; its kind is NotReady, also when the time is over.
func Wait(ctx context.Context, c *cluster.Cluster, namespace, name string, o WaitOptions, progress task.Progress) (*v1alpha1.Sandbox, error) {
	key := keyOf(c, namespace, name)
	told := task.NewChanges(progress)
	var last *v1alpha1.Sandbox
	var giveUp <-chan time.Time
	var hopeless string
	err := cluster.Follow(ctx, c, &v1alpha1.Sandbox{}, &v1alpha1.SandboxList{}, key, o.Timeout, func(sb *v1alpha1.Sandbox) (bool, error) {
		if sb == nil {
			return false, notThere(ctx, c, nil, key)
		}
		last = sb
		s := judge(sb)
		for _, e := range s.events {
			told.Report(e)
		}
		switch {
		case s.ready:
			return true, nil
		case s.hopeless == "":
			giveUp, hopeless = nil, ""
		case giveUp == nil:
			giveUp = time.After(o.FailAfter)
			fallthrough
		default:
			hopeless = s.hopeless
		}
		return false, nil
	}, func() <-chan time.Time { return giveUp })
	switch {
	case err == nil:
		return last, nil
	case errors.Is(err, cluster.ErrGivenUp):
		return last, failure(ctx, c, last, hopeless)
	case errors.Is(err, cluster.ErrTimeout):
		if last == nil {
			return nil, &task.Failure{Kind: task.NotReady, Message: fmt.Sprintf("the API server has not told of sandbox %s within %s", name, o.Timeout), Err: err}
		}
		return last, failure(ctx, c, last, fmt.Sprintf("it is not ready after %s: %s", o.Timeout, judge(last).waits))
	}
	return last, cluster.Explain(err, "wait for sandbox "+name)
}

// WaitGone waits until a sandbox is deleted. The objects of its forks may go on
// for their grace period.
func WaitGone(ctx context.Context, c *cluster.Cluster, namespace, name string, timeout time.Duration) error {
	key := keyOf(c, namespace, name)
	deleted := false
	err := cluster.Follow(ctx, c, &v1alpha1.Sandbox{}, &v1alpha1.SandboxList{}, key, timeout,
		func(sb *v1alpha1.Sandbox) (bool, error) {
			deleted = sb == nil || !sb.DeletionTimestamp.IsZero()
			return sb == nil, nil
		}, nil)
	if errors.Is(err, cluster.ErrTimeout) {
		f := &task.Failure{Kind: task.NotReady, Message: fmt.Sprintf("sandbox %s is still there after %s", name, timeout),
			Remedy: "see its metadata.finalizers, and wait longer with --timeout", Err: err}
		if !deleted {
			f.Message += ", and nobody has deleted it"
			f.Remedy = "delete it first"
		}
		return f
	}
	return cluster.Explain(err, "wait for the end of sandbox "+name)
}

// state is what the conditions of a sandbox come to.
type state struct {
	ready bool
	// waits says what Ready waits for.
	waits string
	// hopeless says what waiting alone does not help against.
	hopeless string
	events   []task.Event
}

// Reasons against which no change of the sandbox helps: of Ready, and of Accepted.
const (
	keyNamesDiffer = "KeyNamesDiffer"
	keyInUse       = "KeyInUse"
)

// patient are reasons of ForksReady that time may help against.
var patient = map[string]bool{"Starting": true, "NotReady": true, "Unschedulable": true, "ForksRefused": true}

// judge reads a sandbox's status. Conditions of another generation say nothing of
// this one.
func judge(sb *v1alpha1.Sandbox) state {
	var s state
	condition := func(kind string) *metav1.Condition {
		c := meta.FindStatusCondition(sb.Status.Conditions, kind)
		if c == nil || c.ObservedGeneration != sb.Generation {
			return nil
		}
		return c
	}
	accepted := condition(v1alpha1.ConditionAccepted)
	if accepted == nil {
		s.waits = "the controller has not looked at it yet: sidetrack doctor says whether there is one"
		s.events = []task.Event{{Subject: "sandbox", State: "waits for the controller"}}
		return s
	}
	if accepted.Status == metav1.ConditionTrue {
		s.events = append(s.events, task.Event{Subject: "sandbox", State: "accepted", OK: true})
	} else {
		s.hopeless = accepted.Message
		s.events = append(s.events, task.Event{Subject: "sandbox", State: "not accepted: " + accepted.Message})
	}
	for _, f := range sb.Status.Forks {
		e := task.Event{Subject: "fork " + Name(f.Workload), Done: int(f.Ready), Total: int(f.Replicas), OK: f.Replicas > 0 && f.Ready >= f.Replicas}
		e.State = fmt.Sprintf("%d of %d pods ready", f.Ready, f.Replicas)
		// What a ready fork does without is said once, in its status.
		if !e.OK && f.Message != "" {
			e.State = f.Message
		}
		s.events = append(s.events, e)
	}
	if forks := condition(v1alpha1.ConditionForksReady); forks != nil && forks.Status == metav1.ConditionFalse && !patient[forks.Reason] && s.hopeless == "" {
		s.hopeless = forks.Message
	}
	if programmed := condition(v1alpha1.ConditionProgrammed); programmed != nil {
		e := task.Event{Subject: "nodes", State: programmed.Message, OK: programmed.Status == metav1.ConditionTrue}
		if n := sb.Status.Nodes; n != nil {
			e.Done, e.Total = int(n.Programmed), int(n.Total)
		}
		s.events = append(s.events, e)
	}
	ready := condition(v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		s.waits = "the controller has not said so yet"
	case ready.Status == metav1.ConditionTrue:
		s.ready = true
		s.events = append(s.events, task.Event{Subject: "sandbox", State: "ready: " + ready.Message, OK: true})
	default:
		s.waits = strings.TrimSpace(ready.Message)
		if ready.Reason == keyNamesDiffer && s.hopeless == "" {
			s.hopeless = s.waits
		}
	}
	return s
}
