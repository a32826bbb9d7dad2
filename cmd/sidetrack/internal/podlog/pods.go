// SPDX-License-Identifier: Apache-2.0

package podlog

import (
	"context"
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// Line is a line of a container's log, with its end.
type Line struct {
	Pod       *corev1.Pod
	Container string
	Text      string
}

// Wanted chooses containers of a pod.
type Wanted func(p *corev1.Pod, container string) bool

// Pods gives the lines of all containers of the pods that a selector matches to
// f, one at a time. With Follow it goes on with pods that come later and
// containers that are started again, until the context ends, which is no error then.
func Pods(ctx context.Context, c *cluster.Cluster, namespace string, selector labels.Selector, o Options, wanted Wanted, f func(Line) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	all := readers{ctx: ctx, cancel: cancel, c: c, o: o, wanted: wanted, f: f, begun: map[run]bool{}}
	if !o.Follow {
		var list corev1.PodList
		if err := c.Objects.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
			return cluster.Explain(err, "list the pods")
		}
		for i := range list.Items {
			all.begin(&list.Items[i])
			// One after the other: there is no order in time among them anyway.
			all.wait()
		}
		return all.failed()
	}
	options := func(o metav1.ListOptions) *client.ListOptions {
		return &client.ListOptions{Namespace: namespace, LabelSelector: selector, Raw: &o}
	}
	// The first answer says whether it is allowed; the informer only logs that.
	if err := c.Objects.List(ctx, &corev1.PodList{}, options(metav1.ListOptions{Limit: 1})); err != nil {
		return cluster.Explain(err, "list the pods")
	}
	_, _, events, done := watchtools.NewIndexerInformerWatcherWithLogger(klog.FromContext(ctx), &cache.ListWatch{
		ListWithContextFunc: func(_ context.Context, o metav1.ListOptions) (runtime.Object, error) {
			var list corev1.PodList
			err := c.Objects.List(ctx, &list, options(o))
			return &list, err
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return c.Objects.Watch(ctx, &corev1.PodList{}, options(o))
		},
	}, &corev1.Pod{})
	defer func() {
		events.Stop()
		<-done
		all.wait()
	}()
	for {
		select {
		case <-ctx.Done():
			all.wait()
			return all.failed()
		case e, ok := <-events.ResultChan():
			if !ok {
				cancel(errors.New("the API server has ended the watch"))
				continue
			}
			if p, ok := e.Object.(*corev1.Pod); ok && e.Type != watch.Deleted {
				all.begin(p)
			}
		}
	}
}

// run is one run of a container.
type run struct {
	pod       types.UID
	container string
	restarts  int32
}

type readers struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	c      *cluster.Cluster
	o      Options
	wanted Wanted

	running sync.WaitGroup
	mu      sync.Mutex // f is called with it
	f       func(Line) error
	begun   map[run]bool
}

// begin reads what has begun to run and is not read yet.
func (r *readers) begin(p *corev1.Pod) {
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			s := &list[i]
			id := run{p.UID, s.Name, s.RestartCount}
			ran := s.State.Running != nil || s.State.Terminated != nil || r.o.Previous || s.LastTerminationState.Terminated != nil
			if !ran || r.begun[id] || r.wanted != nil && !r.wanted(p, s.Name) {
				continue
			}
			o := r.o
			if s.RestartCount > 0 && r.begun[run{p.UID, s.Name, s.RestartCount - 1}] {
				// What it says anew is new.
				o.Tail, o.Since = -1, 0
			}
			r.begun[id] = true
			r.running.Go(func() { r.read(p, s.Name, o) })
		}
	}
}

func (r *readers) read(p *corev1.Pod, container string, o Options) {
	err := Copy(r.ctx, r.c, Container{p.Namespace, p.Name, container}, o, func(text string) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.f(Line{p, container, text})
	})
	if err != nil && r.ctx.Err() == nil {
		r.cancel(err)
	}
}

func (r *readers) wait() { r.running.Wait() }

// failed is why it has ended, unless that was the caller's wish.
func (r *readers) failed() error {
	if err := context.Cause(r.ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
