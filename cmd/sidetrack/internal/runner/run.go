// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/podlog"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Result is how a command has ended.
type Result struct {
	// Pod is the pod's name, which is there only where it is kept.
	Pod, Node string
	// ExitCode is the command's own; 128 and the signal's number where one has
	// ended it.
	ExitCode int
	// Reason says how it has ended where the code does not say all, such as
	// OOMKilled.
	Reason string
	// Began is when the command was started, by its node's clock, to the second.
	Began time.Time
	// Took is how long the command has run.
	Took time.Duration
}

// ErrTimeout is in the failure of a command that took too long.
var ErrTimeout = errors.New("the command took too long")

// Run runs a command and gives each line that it prints to out, with its end. It
// returns when the pod is gone, unless that is to be kept. A command that ends with
// another code than 0 is no error; one that did not start, or took too long, is.
func Run(ctx context.Context, c *cluster.Cluster, r Request, out func(line string) error, progress task.Progress) (res Result, err error) {
	sb, err := sandbox.Wait(ctx, c, r.Namespace, r.Sandbox, sandbox.DefaultWait(), task.ProgressFunc(func(e task.Event) {
		if !e.OK {
			progress.Report(e)
		}
	}))
	if err != nil {
		return Result{}, err
	}
	p, err := r.pod(sb)
	if err != nil {
		return Result{}, err
	}
	if err := c.Objects.Create(ctx, p, client.FieldOwner(cluster.FieldManager)); err != nil {
		return Result{}, cluster.Explain(err, "create the pod that runs the command")
	}
	run := run{c: c, r: &r, sandbox: sb, pod: p, told: task.NewChanges(progress), out: out}
	defer func() {
		if !r.Keep {
			err = errors.Join(err, run.remove(ctx))
		}
	}()
	return run.follow(ctx)
}

// run is one run while it goes on.
type run struct {
	c       *cluster.Cluster
	r       *Request
	sandbox *v1alpha1.Sandbox
	pod     *corev1.Pod
	told    *task.Changes
	out     func(string) error
}

// remove removes the pod, also when the user has interrupted the run.
func (r *run) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer cancel()
	err := r.c.Objects.Delete(ctx, r.pod)
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return &task.Failure{
		Message: fmt.Sprintf("the pod %s could not be removed: %v", r.pod.Name, err),
		Remedy:  fmt.Sprintf("kubectl delete pod -n %s %s; it goes with the sandbox, too", r.pod.Namespace, r.pod.Name), Err: err,
	}
}

func (r *run) say(state string, ok bool) {
	r.told.Report(task.Event{Subject: "pod " + r.pod.Name, State: state, OK: ok})
}

func (r *run) follow(ctx context.Context) (Result, error) {
	r.say("created", false)
	if err := r.started(ctx); err != nil {
		return Result{Pod: r.pod.Name}, err
	}
	// From here on the command runs, or has run.
	var cancel context.CancelFunc
	ctx, cancel = context.WithTimeoutCause(ctx, r.r.timeout(), ErrTimeout)
	defer cancel()
	logs := podlog.Container{Namespace: r.pod.Namespace, Pod: r.pod.Name, Name: container}
	err := podlog.Copy(ctx, r.c, logs, podlog.Options{Follow: true, Tail: -1}, r.out)
	if err == nil {
		var end *corev1.ContainerStateTerminated
		end, err = r.ended(ctx)
		if err == nil {
			return r.result(end), nil
		}
	}
	if errors.Is(context.Cause(ctx), ErrTimeout) {
		return Result{Pod: r.pod.Name, Node: r.pod.Spec.NodeName}, &task.Failure{
			Kind: task.NotReady, Message: fmt.Sprintf("the command has not ended within %s and is stopped", r.r.timeout()), Remedy: "give it more with --timeout", Err: ErrTimeout,
		}
	}
	return Result{Pod: r.pod.Name, Node: r.pod.Spec.NodeName}, cluster.Explain(err, "follow pod "+r.pod.Name)
}

// failAfter is how long a pod may be in a state that waiting does not help
// against.
const failAfter = 5 * time.Second

// startTimeout is how long it may take until the command starts.
const startTimeout = 5 * time.Minute

// started waits until the command runs, or has run.
func (r *run) started(ctx context.Context) error {
	var giveUp <-chan time.Time
	why := ""
	err := r.watch(ctx, startTimeout, func(p *corev1.Pod) (bool, error) {
		s := Look(p, container)
		r.say(s.State, s.Started)
		switch {
		case s.Started:
			return true, nil
		case s.Over:
			why = s.State
			return false, cluster.ErrGivenUp
		case s.Hopeless == "":
			giveUp = nil
		case giveUp == nil:
			giveUp = time.After(failAfter)
			fallthrough
		default:
			why = s.Hopeless
		}
		return false, nil
	}, func() <-chan time.Time { return giveUp })
	switch {
	case errors.Is(err, cluster.ErrGivenUp):
		return r.notStarted(ctx, why)
	case errors.Is(err, cluster.ErrTimeout):
		return r.notStarted(ctx, fmt.Sprintf("%s, after %s", Look(r.pod, container).State, startTimeout))
	}
	return cluster.Explain(err, "wait for pod "+r.pod.Name)
}

func (r *run) notStarted(ctx context.Context, why string) error {
	f := &task.Failure{
		Kind: task.NotReady, Message: "the command has not been started: " + why,
		Details: sandbox.Troubles(context.WithoutCancel(ctx), r.c, r.pod),
		Remedy:  "correct the image or the command; --keep leaves the pod to be looked at",
	}
	if s := statusOf(r.pod.Status.InitContainerStatuses, check); s != nil && s.State.Terminated != nil && s.State.Terminated.ExitCode != 0 {
		f.Remedy = "sidetrack status says which nodes are covered; --no-coverage-check starts the command all the same, and its requests may reach the baseline"
	}
	return f
}

// watch follows the pod.
func (r *run) watch(ctx context.Context, timeout time.Duration, f func(*corev1.Pod) (bool, error), giveUp func() <-chan time.Time) error {
	return cluster.Follow(ctx, r.c, &corev1.Pod{}, &corev1.PodList{}, client.ObjectKeyFromObject(r.pod), timeout, func(p *corev1.Pod) (bool, error) {
		// Who is deleted is ended first: how the command ends then is not its own doing.
		if p == nil || p.DeletionTimestamp != nil {
			return false, sandbox.PodGone(ctx, r.c, r.sandbox, r.pod.Name, "was deleted before the command had ended")
		}
		r.pod = p
		return f(p)
	}, giveUp)
}

// ended waits for the word that the command has ended.
func (r *run) ended(ctx context.Context) (*corev1.ContainerStateTerminated, error) {
	var end *corev1.ContainerStateTerminated
	err := r.watch(ctx, 0, func(p *corev1.Pod) (bool, error) {
		if s := statusOf(p.Status.ContainerStatuses, container); s != nil && s.State.Terminated != nil {
			end = s.State.Terminated
			return true, nil
		}
		if p.Status.Phase == corev1.PodFailed {
			return false, &task.Failure{Kind: task.NotReady, Message: fmt.Sprintf("pod %s was ended: %s", p.Name, cmp.Or(p.Status.Message, p.Status.Reason)), Remedy: "run it again"}
		}
		return false, nil
	}, nil)
	return end, err
}

func (r *run) result(end *corev1.ContainerStateTerminated) Result {
	res := Result{Pod: r.pod.Name, Node: r.pod.Spec.NodeName, ExitCode: int(end.ExitCode), Began: end.StartedAt.Time, Took: end.FinishedAt.Sub(end.StartedAt.Time)}
	if end.Signal != 0 {
		res.ExitCode = 128 + int(end.Signal)
	}
	if end.Reason != "Completed" && end.Reason != "Error" {
		res.Reason = end.Reason
	}
	return res
}

func statusOf(all []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}
