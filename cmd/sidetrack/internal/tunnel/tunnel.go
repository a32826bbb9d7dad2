// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/runner"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

const (
	// port is where the relay listens, on loopback.
	port = 15080
	// idle is after how long without use the pod ends by itself, in case nobody is
	// left to remove it; alive is how often it is told that somebody is.
	idle  = 3 * time.Minute
	alive = 45 * time.Second
	// longest is how long a pod may be there at all.
	longest = 12 * time.Hour
	// coverage is how long to wait for the pod to be covered.
	coverage = 30 * time.Second
	// startTimeout is how long the pod may take to start.
	startTimeout = 2 * time.Minute
	// errorHeader is where the relay says in a word why it could not connect.
	errorHeader = "Sidetrack-Error"
)

// Options say where connections are to come from.
type Options struct {
	// Sandbox is the sandbox that the pod goes with.
	Sandbox *v1alpha1.Sandbox
	// Tagged makes the pod one of the sandbox's own, so that its HTTP requests get
	// the routing key and its other flows follow the redirects. Otherwise it is a pod
	// like any other: its requests are tagged by what is in them.
	Tagged bool
	// Image is that of the agents.
	Image string
	// ServiceAccount is the namespace's default one when it is empty. No token of it is
	// mounted.
	ServiceAccount string
}

// Tunnel opens connections from a pod.
type Tunnel struct {
	c       *cluster.Cluster
	sandbox *v1alpha1.Sandbox
	pod     *corev1.Pod

	mu      sync.Mutex
	forward *forward
	closed  bool
	stop    context.CancelFunc
	pinging sync.WaitGroup
}

// Open makes the pod and waits until it relays. The caller closes the tunnel.
func Open(ctx context.Context, c *cluster.Cluster, o Options, progress task.Progress) (*Tunnel, error) {
	captured := ""
	if !o.Tagged {
		captured = capturedAddress(ctx, c, o.Sandbox)
	}
	p := pod(o, captured)
	if err := c.Objects.Create(ctx, p, client.FieldOwner(cluster.FieldManager)); err != nil {
		return nil, cluster.Explain(err, "create the pod that connections come from")
	}
	t := &Tunnel{c: c, sandbox: o.Sandbox, pod: p}
	if err := t.start(ctx, progress); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	alive, stop := context.WithCancel(context.WithoutCancel(ctx))
	t.stop = stop
	t.pinging.Add(1)
	go t.keepAlive(alive)
	return t, nil
}

// Pod is the name of the pod.
func (t *Tunnel) Pod() string { return t.pod.Name }

// Node is the node that it is on.
func (t *Tunnel) Node() string { return t.pod.Spec.NodeName }

// Lost waits until the pod is deleted, as it is with its sandbox, or has ended, and says
// why: nothing gets through any more. It returns nil when ctx ends before.
func (t *Tunnel) Lost(ctx context.Context) error {
	return sandbox.AwaitPodGone(ctx, t.c, t.sandbox, t.pod)
}

// pod is the pod, which waits until its connections to an address are captured. One of
// the sandbox's own knows such an address by itself; another one does not wait where
// captured is empty.
func pod(o Options, captured string) *corev1.Pod {
	deadline, grace, no := int64(longest/time.Second), int64(1), false
	args := []string{"relay", fmt.Sprintf("--listen=127.0.0.1:%d", port), "--idle=" + idle.String()}
	labels := map[string]string{"app.kubernetes.io/managed-by": "sidetrack"}
	switch {
	case o.Tagged:
		labels = runner.Labels(o.Sandbox.Name, true)
		args = append(args, "--covered="+coverage.String())
	case captured != "":
		args = append(args, "--covered="+coverage.String(), "--covered-address="+captured)
	}
	name := "proxy-" + o.Sandbox.Name
	if len(name) > 56 {
		name = strings.TrimRight(name[:56], "-")
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: o.Sandbox.Namespace, GenerateName: name + "-",
			Labels: labels, OwnerReferences: runner.OwnedBy(o.Sandbox),
		},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, ActiveDeadlineSeconds: &deadline, TerminationGracePeriodSeconds: &grace,
			ServiceAccountName: o.ServiceAccount, AutomountServiceAccountToken: &no,
			Containers: []corev1.Container{cluster.OwnContainer("relay", o.Image, args...)},
		},
	}
}

// start waits until the relay serves.
func (t *Tunnel) start(ctx context.Context, progress task.Progress) error {
	told := task.NewChanges(progress)
	var giveUp <-chan time.Time
	var why string
	key := client.ObjectKeyFromObject(t.pod)
	err := cluster.Follow(ctx, t.c, &corev1.Pod{}, &corev1.PodList{}, key, startTimeout, func(p *corev1.Pod) (bool, error) {
		if p == nil {
			return false, &task.Failure{Message: "somebody has deleted the pod " + key.Name, Remedy: "try again"}
		}
		t.pod = p
		s := runner.Look(p, "relay")
		told.Report(task.Event{Subject: "pod " + p.Name, State: s.State, OK: s.Started})
		switch {
		case s.Started:
			return true, nil
		case s.Over:
			why = s.State
			return false, cluster.ErrGivenUp
		case s.Hopeless == "":
			giveUp = nil
		case giveUp == nil:
			giveUp = time.After(5 * time.Second)
			fallthrough
		default:
			why = s.Hopeless
		}
		return false, nil
	}, func() <-chan time.Time { return giveUp })
	switch {
	case errors.Is(err, cluster.ErrTimeout):
		return t.failed(ctx, fmt.Sprintf("it has not started within %s", startTimeout))
	case errors.Is(err, cluster.ErrGivenUp):
		return t.failed(ctx, why)
	case err != nil:
		return cluster.Explain(err, "wait for pod "+t.pod.Name)
	}
	// It runs; it serves when it is covered, and that is when somebody answers.
	deadline, cancel := context.WithTimeoutCause(ctx, coverage+startTimeout/4, cluster.ErrTimeout)
	defer cancel()
	for {
		err := t.ping(deadline)
		if err == nil {
			return nil
		}
		if e := t.look(ctx); e != nil {
			return e
		}
		select {
		case <-deadline.Done():
			if ctx.Err() != nil {
				return cluster.Explain(ctx.Err(), "reach pod "+t.pod.Name)
			}
			return cluster.Explain(err, "reach pod "+t.pod.Name+" by port-forwarding")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// look reports that the pod has ended.
func (t *Tunnel) look(ctx context.Context) error {
	p := &corev1.Pod{}
	if err := t.c.Objects.Get(ctx, client.ObjectKeyFromObject(t.pod), p); err != nil {
		return cluster.Explain(err, "look at pod "+t.pod.Name)
	}
	for i := range p.Status.ContainerStatuses {
		if end := p.Status.ContainerStatuses[i].State.Terminated; end != nil {
			t.pod = p
			return t.failed(ctx, strings.TrimSpace(end.Message))
		}
	}
	return nil
}

func (t *Tunnel) failed(ctx context.Context, why string) error {
	return &task.Failure{
		Kind: task.NotReady, Message: fmt.Sprintf("the pod %s, which connections come from, does not work: %s", t.pod.Name, why),
		Details: sandbox.Troubles(context.WithoutCancel(ctx), t.c, t.pod),
		Remedy:  "sidetrack status says which nodes are covered; --agent-image names the image of the pod where the nodes cannot pull the usual one",
	}
}

// DialContext opens a connection from the pod. The address's host is resolved
// there. The network is tcp.
func (t *Tunnel) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, &net.OpError{Op: "dial", Net: network, Err: net.UnknownNetworkError(network)}
	}
	conn, err := t.stream(ctx)
	if err != nil {
		return nil, err
	}
	// A stream has no deadlines: closing it is what ends a wait.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	connected, err := connect(conn, address)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	if !stop() {
		conn.Close()
		return nil, ctx.Err()
	}
	return connected, nil
}

// DialError says why the relay could not connect.
type DialError struct {
	// Word is unresolved, refused, unreachable, timeout or failed.
	Word string
	// Message is what the relay says.
	Message string
}

func (e *DialError) Error() string { return e.Message }

// connect asks the relay for a connection.
func connect(conn net.Conn, address string) (net.Conn, error) {
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", address, address); err != nil {
		return nil, fmt.Errorf("ask the relay for %s: %w", address, err)
	}
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, fmt.Errorf("ask the relay for %s: %w", address, err)
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		resp.Body.Close()
		return nil, &DialError{Word: resp.Header.Get(errorHeader), Message: strings.TrimSpace(string(text))}
	}
	return buffered{conn, in}, nil
}

// buffered is a connection of which something may have been read already.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// CloseWrite says that nothing more will be sent.
func (b buffered) CloseWrite() error {
	if c, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// stream opens a connection to the relay.
func (t *Tunnel) stream(ctx context.Context) (net.Conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, net.ErrClosed
	}
	// A connection to the kubelet ends now and then: by an upgrade, by a time limit.
	for attempt := 0; ; attempt++ {
		if t.forward == nil || t.forward.isClosed() {
			f, err := openForward(ctx, t.c, t.pod)
			if err != nil {
				return nil, err
			}
			t.forward = f
		}
		conn, err := t.forward.open()
		if err == nil {
			return conn, nil
		}
		t.forward.close()
		t.forward = nil
		if attempt > 0 {
			return nil, err
		}
	}
}

// ping tells the relay that somebody is there.
func (t *Tunnel) ping(ctx context.Context) error {
	conn, err := t.stream(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := io.WriteString(conn, "GET /alive HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the relay answers %s", resp.Status)
	}
	return nil
}

func (t *Tunnel) keepAlive(ctx context.Context) {
	defer t.pinging.Done()
	tick := time.NewTicker(alive)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			// What is wrong turns up when the tunnel is used.
			once, cancel := context.WithTimeout(ctx, alive)
			_ = t.ping(once)
			cancel()
		}
	}
}

// Close ends all connections and removes the pod.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	t.closed = true
	if t.forward != nil {
		t.forward.close()
	}
	t.mu.Unlock()
	if t.stop != nil {
		t.stop()
		t.pinging.Wait()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := t.c.Objects.Delete(ctx, t.pod)
	if err == nil || apierrors.IsNotFound(err) {
		return nil
	}
	return &task.Failure{
		Message: fmt.Sprintf("the pod %s could not be removed: %v", t.pod.Name, err), Err: err,
		Remedy: fmt.Sprintf("kubectl delete pod -n %s %s; left alone it ends after %s, and goes with the sandbox", t.pod.Namespace, t.pod.Name, idle),
	}
}
