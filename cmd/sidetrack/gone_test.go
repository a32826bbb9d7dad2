// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	ours "github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// expiring makes a sandbox that is ready, and whose ttl ends then; never when it is zero.
func expiring(t *testing.T, ns, name string, end time.Time) *v1alpha1.Sandbox {
	t.Helper()
	create(t, &v1alpha1.Sandbox{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}})
	ready(t, ns, name)
	if !end.IsZero() {
		says(t, ns, name, func(sb *v1alpha1.Sandbox) { sb.Status.ExpiresAt = &metav1.Time{Time: end} })
	}
	return sandboxOf(t, ns, name)
}

func remove(t *testing.T, o client.Object) {
	t.Helper()
	if err := api.Delete(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func TestLogsThatAreFollowedEndWithTheSandbox(t *testing.T) {
	ns := namespace(t)
	s := serveShortWatches(t)
	sb := expiring(t, ns, "a", time.Time{})
	r := startAs(t.Context(), t, admin(t), ns, "", "--server="+s.url, "logs", "a", "-f")
	s.await(t, 2, 0) // of the pods and of the sandbox
	remove(t, sb)
	if got := r.wait(t); got != 1 {
		t.Errorf("exit status %d, want 1", got)
	}
	mustSay(t, r.err.String(), "sandbox a is gone: somebody has deleted it\n", "next: create it anew")
}

func TestARunWhosePodIsTakenAwayHasNotEndedByItself(t *testing.T) {
	for _, c := range []struct {
		name, says string
		end        time.Time
		sandboxToo bool
	}{
		{"somebody deletes the pod", "was deleted before the command had ended", time.Time{}, false},
		{"somebody deletes the sandbox", "sandbox a is gone: somebody has deleted it", time.Now().Add(time.Hour), true},
		{"the ttl is over", "sandbox a is gone: its ttl was over at ", time.Now(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns := namespace(t)
			sb := expiring(t, ns, "a", c.end)
			// The finalizer keeps it there for a while, as the time that it has to end does.
			patch := file(t, `{"metadata": {"finalizers": ["sidetrack.test/held"]}}`)
			r := start(t.Context(), t, ns, "", "run", "--sandbox", "a", "--image", "x", "--no-coverage-check", "--agent-image", "y", "--patch", patch, "--", "z")
			var pods corev1.PodList
			eventually(t, func() error {
				if err := api.List(t.Context(), &pods, client.InNamespace(ns)); err != nil {
					return err
				}
				if len(pods.Items) != 1 || !strings.Contains(r.err.String(), "waits for a node") {
					return fmt.Errorf("%d pods: %s", len(pods.Items), r.err.String())
				}
				return nil
			})
			if c.sandboxToo {
				remove(t, sb)
			}
			remove(t, &pods.Items[0])
			if got := r.wait(t); got != 125 {
				t.Errorf("exit status %d, want 125", got)
			}
			mustSay(t, r.err.String(), c.says)
			pod := &pods.Items[0]
			if err := api.Patch(t.Context(), pod, client.RawPatch("application/merge-patch+json", []byte(`{"metadata": {"finalizers": null}}`))); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAPodThatIsLostIsToldWithTheReason(t *testing.T) {
	ns := namespace(t)
	c, err := ours.Connect(plane.Admin(), ns, nil)
	if err != nil {
		t.Fatal(err)
	}
	sb := expiring(t, ns, "a", time.Time{})
	pod := func() *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, GenerateName: "proxy-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "relay", Image: "x"}}}}
		create(t, p)
		return p
	}
	for _, c2 := range []struct {
		says string
		lose func(p *corev1.Pod)
	}{
		{"is deleted", func(p *corev1.Pod) { remove(t, p) }},
		{"has ended: nobody has used it for too long", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
			if err := api.Status().Update(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}},
		{"sandbox a is gone: somebody has deleted it", func(p *corev1.Pod) {
			remove(t, sb)
			remove(t, p)
		}},
	} {
		p := pod()
		lost := make(chan error, 1)
		go func() { lost <- sandbox.AwaitPodGone(t.Context(), c, sb, p) }()
		select {
		case err := <-lost:
			t.Fatalf("it is lost before anything has happened: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		c2.lose(p)
		if err := <-lost; err == nil || !strings.Contains(err.Error(), c2.says) {
			t.Errorf("%v, want %q", err, c2.says)
		}
	}
}
