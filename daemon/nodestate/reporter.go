// SPDX-License-Identifier: Apache-2.0

// Package nodestate tells the cluster what the agent of this node has in force.
//
// It owns the NodeState object that has the node's name: when it is written, how
// often at most, and who may write it while two agents take turns. It never
// decides what is in force, and reads nothing but that object and its Node. All
// methods of a Reporter may be called concurrently.
package nodestate

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

const (
	// heartbeat is how often the object is written when there is nothing new.
	heartbeat = 10 * time.Second
	// spacing is the least time between two writes.
	spacing = 100 * time.Millisecond
	// patience is how long the server may take for one write, and the wait after
	// one that has failed.
	patience = 5 * time.Second
	retry    = time.Second
	// stale is how old another agent's heartbeat is when that agent is taken to be
	// gone.
	stale = 40 * time.Second
	// farewell is how long the last write may take.
	farewell = 2 * time.Second

	manager     = "sidetrackd"
	maxProblems = 64
	maxServices = 256
	bootIDFile  = "/proc/sys/kernel/random/boot_id"
)

// State is what an agent says.
type State struct {
	// Applied is what is in force; nil while nothing is.
	Applied *v1alpha1.AppliedVersions
	// Covered and Uncovered count pods.
	Covered, Uncovered int
	// Connections counts those from before a redirect that are not covered, by
	// Service.
	Connections map[routing.Name]int
	// Problems are what could not be honoured.
	Problems []routing.Problem
}

// Reporter writes the NodeState of one node.
type Reporter struct {
	node, version  string
	bootID         string
	instance       string
	keys           *v1alpha1.KeyNames
	nodes, objects rest.Interface
	log            *slog.Logger

	mu      sync.Mutex
	state   State
	begun   bool
	resting bool // another agent acts
	insist  bool // write whoever has written
	wake    chan struct{}
	turn    chan struct{} // it acts (again)

	// Of the writing goroutine alone.
	seen   string // resource version of our last write
	failed string // what was last said

	cancel  context.CancelFunc
	stopped sync.WaitGroup
	once    sync.Once
}

// New returns a Reporter. It writes from the first Report on: until then the word
// of the agent before this one holds. keys, which the agent looks for routing keys by,
// must be valid.
func New(cfg *rest.Config, node, version string, keys routing.KeyNames, log *slog.Logger) (*Reporter, error) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return nil, fmt.Errorf("nodestate: read the boot id: %w", err)
	}
	r := &Reporter{
		node:     node,
		version:  version,
		bootID:   strings.TrimSpace(string(boot)),
		instance: rand.Text(),
		keys:     &v1alpha1.KeyNames{Members: keys.Members, Header: strings.ToLower(keys.Header)},
		log:      log,
		wake:     make(chan struct{}, 1),
		turn:     make(chan struct{}, 1),
	}
	if r.nodes, err = client(cfg, corev1.SchemeGroupVersion, "/api", corev1.AddToScheme); err != nil {
		return nil, err
	}
	if r.objects, err = client(cfg, v1alpha1.GroupVersion, "/apis", v1alpha1.AddToScheme); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.stopped.Go(func() { r.run(ctx) })
	return r, nil
}

func client(cfg *rest.Config, gv schema.GroupVersion, path string, add func(*runtime.Scheme) error) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, fmt.Errorf("nodestate: register kinds: %w", err)
	}
	cfg = rest.CopyConfig(cfg)
	cfg.GroupVersion, cfg.APIPath = &gv, path
	cfg.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	cfg.QPS = -1
	c, err := rest.RESTClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("nodestate: %w", err)
	}
	return c, nil
}

// Report sets what is said from now on. What is urgent, and the first, is written
// as soon as writes may follow one another; the rest with the next heartbeat.
func (r *Reporter) Report(s State, urgent bool) {
	if len(s.Problems) > maxProblems {
		s.Problems = s.Problems[:maxProblems]
	}
	r.mu.Lock()
	first := !r.begun
	r.state, r.begun = s, true
	r.mu.Unlock()
	if urgent || first {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// Act says whether this agent is the one that acts. One that does not writes
// nothing; one that does again writes at once, whatever another has written: that
// one may have ended without a word. Until it is called, the agent acts.
func (r *Reporter) Act(acts bool) {
	r.mu.Lock()
	r.resting, r.insist = !acts, acts && r.begun
	r.mu.Unlock()
	if !acts {
		return
	}
	select {
	case r.turn <- struct{}{}:
	default:
	}
}

// Close ends the writing, and says that nothing is in force any more, unless
// another agent has taken over by then.
func (r *Reporter) Close() error {
	var err error
	r.once.Do(func() {
		r.cancel()
		r.stopped.Wait()
		if r.seen == "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), farewell)
		defer cancel()
		var patch []byte
		patch, err = json.Marshal([]map[string]string{
			{"op": "test", "path": "/status/instance", "value": r.instance},
			{"op": "test", "path": "/metadata/resourceVersion", "value": r.seen},
			{"op": "remove", "path": "/status/applied"},
		})
		if err != nil {
			return
		}
		e := r.objects.Patch(types.JSONPatchType).Resource("nodestates").Name(r.node).SubResource("status").
			Param("fieldManager", manager).Body(patch).Do(ctx).Error()
		if e != nil {
			// Most likely there is a successor, or nothing was in force.
			r.log.Debug("node's state is left as it is", "err", e)
		}
	})
	return err
}

func (r *Reporter) run(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-r.wake:
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		wait := spacing
		switch err := r.write(ctx); {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errSuperseded):
			r.say(err)
			wait = heartbeat
		case err != nil:
			r.say(err)
			wait = retry
			select {
			case r.wake <- struct{}{}:
			default:
			}
		default:
			r.say(nil)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.turn:
			continue
		case <-time.After(wait):
		}
		select {
		case <-ctx.Done():
			return
		case <-r.turn:
		case <-r.wake:
		case <-beat.C:
		}
	}
}

// say says once that writing fails, and once that it works again.
func (r *Reporter) say(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == r.failed:
	case text == "":
		r.log.Info("node's state is written again")
	case errors.Is(err, errSuperseded):
		r.log.Info("another agent of this node writes its state now")
	default:
		r.log.Warn("node's state cannot be written, so sandboxes will not be ready; trying again", "reason", text)
	}
	r.failed = text
}

var errSuperseded = errors.New("another agent writes the node's state")

// write writes the state once.
func (r *Reporter) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r.mu.Lock()
	resting, insist := r.resting, r.insist
	r.insist = false
	r.mu.Unlock()
	if resting {
		return errSuperseded
	}
	err := r.writeOver(ctx, insist)
	if err != nil && insist {
		r.mu.Lock()
		r.insist = !r.resting
		r.mu.Unlock()
	}
	return err
}

// writeOver writes the state once, unless another agent has the word. With insist
// none has.
func (r *Reporter) writeOver(ctx context.Context, insist bool) error {
	err := r.apply(ctx, r.seen)
	switch {
	case apierrors.IsNotFound(err):
		if err := r.create(ctx); err != nil {
			return err
		}
		return r.apply(ctx, "")
	case apierrors.IsConflict(err):
		// Somebody else has written: the agent that takes over from this one, or
		// somebody by hand.
		other, err := r.read(ctx)
		if err != nil {
			return err
		}
		// One that has nothing in force has ended, or is not as far yet.
		beat := other.Status.HeartbeatTime
		if !insist && other.Status.Instance != r.instance && other.Status.Applied != nil &&
			beat != nil && time.Since(beat.Time) < stale {
			return errSuperseded
		}
		return r.apply(ctx, other.ResourceVersion)
	}
	return err
}

// apply writes the status, if the object's version is still the one that is given.
func (r *Reporter) apply(ctx context.Context, version string) error {
	r.mu.Lock()
	s := r.state
	r.mu.Unlock()
	now := metav1.NowMicro()
	o := v1alpha1.NodeState{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.NodeStateKind},
		ObjectMeta: metav1.ObjectMeta{Name: r.node, ResourceVersion: version},
		Status: v1alpha1.NodeStateStatus{
			AgentVersion:  cut(r.version, 128),
			BootID:        r.bootID,
			Instance:      r.instance,
			HeartbeatTime: &now,
			Applied:       s.Applied,
			KeyNames:      r.keys,
			Pods:          v1alpha1.PodCoverage{Covered: int32(s.Covered), Uncovered: int32(s.Uncovered)},
			Connections:   connections(s.Connections),
			Problems:      problems(s.Problems),
		},
	}
	return r.patch(ctx, &o, "status")
}

// create makes the object, which goes when its Node goes.
func (r *Reporter) create(ctx context.Context) error {
	o := v1alpha1.NodeState{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.APIVersion, Kind: v1alpha1.NodeStateKind},
		ObjectMeta: metav1.ObjectMeta{Name: r.node},
	}
	var node corev1.Node
	if err := r.nodes.Get().Resource("nodes").Name(r.node).Do(ctx).Into(&node); err != nil {
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("there is no Node %s: give the agent its node's name with --node-name", r.node)
		}
		return fmt.Errorf("read Node %s: %w", r.node, err)
	}
	o.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	return r.patch(ctx, &o)
}

func (r *Reporter) patch(ctx context.Context, o *v1alpha1.NodeState, sub ...string) error {
	body, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode the node's state: %w", err)
	}
	var got v1alpha1.NodeState
	err = r.objects.Patch(types.ApplyPatchType).Resource("nodestates").Name(r.node).SubResource(sub...).
		Param("fieldManager", manager).Param("force", "true").Body(body).Do(ctx).Into(&got)
	if err != nil {
		return err
	}
	r.seen = got.ResourceVersion
	return nil
}

func (r *Reporter) read(ctx context.Context) (*v1alpha1.NodeState, error) {
	var o v1alpha1.NodeState
	if err := r.objects.Get().Resource("nodestates").Name(r.node).Do(ctx).Into(&o); err != nil {
		return nil, err
	}
	return &o, nil
}

func problems(all []routing.Problem) []v1alpha1.NodeProblem {
	var out []v1alpha1.NodeProblem
	for _, p := range all {
		out = append(out, v1alpha1.NodeProblem{
			Kind: cut(p.Kind, 64), Namespace: cut(p.Object.Namespace, 63), Name: cut(p.Object.Name, 253),
			Field: cut(p.Field, 256), Message: cut(p.Message, 1024),
		})
	}
	return out
}

// cut shortens text to a number of bytes, which no character has fewer of.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "")
}

// connections are the Services with the most connections, most first.
func connections(all map[routing.Name]int) []v1alpha1.ServiceConnections {
	var out []v1alpha1.ServiceConnections
	for name, n := range all {
		out = append(out, v1alpha1.ServiceConnections{Namespace: name.Namespace, Service: name.Name, Uncovered: int32(min(n, math.MaxInt32))})
	}
	slices.SortFunc(out, func(a, b v1alpha1.ServiceConnections) int {
		return cmp.Or(cmp.Compare(b.Uncovered, a.Uncovered), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Service, b.Service))
	})
	return out[:min(len(out), maxServices)]
}
