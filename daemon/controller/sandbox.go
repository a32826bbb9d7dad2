// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

var sandboxKind = v1alpha1.GroupVersion.WithKind(v1alpha1.SandboxKind)

// maxStatusRedirects is what the status may hold.
const maxStatusRedirects = 1024

// base is what both reconcilers are made of.
type base struct {
	client   client.Client
	live     client.Reader // past the cache
	grants   *grants
	beats    *heartbeats
	nodes    labels.Selector
	recorder events.EventRecorder
	now      func() time.Time
	memory   *memory
}

// sandboxes brings about what Sandboxes ask for.
type sandboxes struct {
	base
	applier applier
}

// Reconcile does it for one.
func (r *sandboxes) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	sb := &v1alpha1.Sandbox{}
	err := r.client.Get(ctx, req.NamespacedName, sb)
	switch {
	case apierrors.IsNotFound(err), err == nil && sb.DeletionTimestamp != nil:
		// What it owns goes with it: the garbage collector sees to that.
		if uid, ok := r.memory.forget(req); ok {
			r.applier.forget(uid)
		}
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get Sandbox %s: %w", req, err)
	}
	known := r.memory.of(req, sb.UID)
	if !reached(sb.ResourceVersion, known.written) {
		return reconcile.Result{}, nil // the cache is behind, and an event will come
	}
	pass := sandboxPass{
		sandboxes: r, sb: sb, known: known, req: req,
		view: view{ctx: ctx, reader: r.client, grants: r.grants},
		now:  r.now(),
	}
	return pass.run(ctx)
}

// sandboxPass is one look at one Sandbox.
type sandboxPass struct {
	*sandboxes
	sb    *v1alpha1.Sandbox
	known *remembered
	req   reconcile.Request
	view  view
	now   time.Time

	again time.Duration
}

// in asks to look again after a time at the latest.
func (p *sandboxPass) in(d time.Duration) {
	if d > 0 && (p.again == 0 || d < p.again) {
		p.again = d
	}
}

func (p *sandboxPass) run(ctx context.Context) (reconcile.Result, error) {
	if over, err := p.expire(ctx); over || err != nil {
		return reconcile.Result{}, err
	}
	if refersElsewhere(p.sb) && !p.grants.known() {
		return reconcile.Result{RequeueAfter: 100 * time.Millisecond}, nil
	}
	key, refused := p.routingKey(ctx)
	if refused != nil {
		// Its redirects hold for flows of its own pods, which carry no key.
		key = ""
	}
	ns := p.view.namespace(p.sb.Namespace)
	var forks []fork
	for _, f := range p.sb.Spec.Forks {
		forks = append(forks, planFork(p.sb, key, f, ns))
	}
	owned := p.view.owned(p.sb)
	targets := p.view.targets()
	res := resolve(p.sb, forks, targets)
	if p.view.err != nil {
		return reconcile.Result{}, p.view.err
	}
	before := p.sb.Status
	if err := p.announce(ctx, key, bounded(res.redirects)); err != nil {
		return ignoreConflict(err)
	}
	states, later := p.bringAbout(ctx, forks, owned, refused)
	// Once more, for the endpoints of what is there now.
	res = resolve(p.sb, forks, targets)
	status, err := p.status(key, refused, forks, states, res, targets)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !equality.Semantic.DeepEqual(status, p.sb.Status) {
		if err := p.write(ctx, status); err != nil {
			return ignoreConflict(err)
		}
	}
	tellConditions(p.recorder, p.sb, before.Conditions, p.sb.Status.Conditions)
	// Last, so that no redirect leads to what is gone.
	for _, o := range prunable(owned, forks, p.sb.Status.Redirects) {
		if err := p.applier.remove(ctx, o); err != nil {
			later = errors.Join(later, err)
			continue
		}
		p.recorder.Eventf(p.sb, nil, corev1.EventTypeNormal, "Removed", "Remove", "removed %s %s, which the spec does not ask for any more", kindOf(o), o.GetName())
	}
	return reconcile.Result{RequeueAfter: p.again}, later
}

// announce writes the key, and where redirects lead, before anything is made:
// flows of a fork's pods for which no node knows a redirect would reach the
// baseline. What is redirected to a fork that is not there yet is rejected.
func (p *sandboxPass) announce(ctx context.Context, key string, redirects []v1alpha1.RedirectStatus) error {
	if key == p.sb.Status.RoutingKey && sameRouting(redirects, p.sb.Status.Redirects) {
		return nil
	}
	next := *p.sb.Status.DeepCopy()
	next.RoutingKey, next.Redirects = key, redirects
	// Whoever sees the key sees how to use it.
	next.KeyNames = p.view.cluster(p.beats, p.nodes, p.now).keyNames()
	if p.view.err != nil {
		return p.view.err
	}
	next.Revision++
	const message = "where redirects lead has just been changed"
	c := conditions{list: next.Conditions, generation: p.sb.Generation}
	c.set(v1alpha1.ConditionProgrammed, false, reasonWaiting, message)
	c.set(v1alpha1.ConditionReady, false, reasonNotProgramed, message)
	next.Conditions = c.list
	return p.write(ctx, next)
}

// bounded leaves out what a status cannot hold.
func bounded(all []v1alpha1.RedirectStatus) []v1alpha1.RedirectStatus {
	return all[:min(len(all), maxStatusRedirects)]
}

// ignoreConflict waits for the event that a newer object brings.
func ignoreConflict(err error) (reconcile.Result, error) {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return reconcile.Result{RequeueAfter: 50 * time.Millisecond}, nil
	}
	return reconcile.Result{}, err
}

func refersElsewhere(sb *v1alpha1.Sandbox) bool {
	for _, r := range sb.Spec.Redirects {
		if r.To.Namespace != "" && r.To.Namespace != sb.Namespace {
			return true
		}
	}
	return false
}

// expire deletes the sandbox when its time is over.
func (p *sandboxPass) expire(ctx context.Context) (bool, error) {
	at := expiry(p.sb)
	if at == nil {
		return false, nil
	}
	if left := at.Sub(p.now); left > 0 {
		p.in(left)
		return false, nil
	}
	// With the version: a TTL that has just been prolonged counts.
	uid, version, background := p.sb.UID, p.sb.ResourceVersion, metav1.DeletePropagationBackground
	err := p.client.Delete(ctx, p.sb, &client.DeleteOptions{
		Preconditions:     &metav1.Preconditions{UID: &uid, ResourceVersion: &version},
		PropagationPolicy: &background,
	})
	switch {
	case apierrors.IsNotFound(err):
		return true, nil
	case apierrors.IsConflict(err):
		p.in(50 * time.Millisecond)
		return false, nil
	case err != nil:
		return true, fmt.Errorf("delete Sandbox %s, whose time is over: %w", p.req, err)
	}
	p.recorder.Eventf(p.sb, nil, corev1.EventTypeNormal, "Expired", "Delete", "its ttl of %s is over: deleted, forks and all", p.sb.Spec.TTL.Duration)
	return true, nil
}

func expiry(sb *v1alpha1.Sandbox) *metav1.Time {
	if sb.Spec.TTL == nil {
		return nil
	}
	at := metav1.NewTime(sb.CreationTimestamp.Add(sb.Spec.TTL.Duration).Truncate(time.Second))
	return &at
}

// routingKey returns the key that the sandbox is to have.
func (p *sandboxPass) routingKey(ctx context.Context) (string, *refusal) {
	if p.sb.Spec.RoutingKey == "" {
		if p.sb.Status.RoutingKey != "" {
			return p.sb.Status.RoutingKey, nil
		}
		return newRoutingKey(), nil
	}
	key := p.sb.Spec.RoutingKey
	return key, keyRefused(sandboxClaim(p.sb, key), p.view.claimants(key))
}

// claimants are all objects that want or have a key.
func (v *view) claimants(key string) []claimant {
	var out []claimant
	var sandboxes v1alpha1.SandboxList
	v.list(&sandboxes, client.MatchingFields{indexKey: key})
	for i := range sandboxes.Items {
		out = append(out, sandboxClaim(&sandboxes.Items[i], key))
	}
	var groups v1alpha1.RouteGroupList
	v.list(&groups, client.MatchingFields{indexKey: key})
	for i := range groups.Items {
		out = append(out, groupClaim(&groups.Items[i], key))
	}
	return out
}

func (p *sandboxPass) write(ctx context.Context, status v1alpha1.SandboxStatus) error {
	version, err := writeStatus(ctx, p.client, sandboxKind, p.sb, &status)
	if err != nil {
		return err
	}
	p.sb = p.sb.DeepCopy()
	p.sb.Status, p.sb.ResourceVersion, p.known.written = status, version, version
	p.known.at(p.sb.Generation, status.Revision, version)
	return nil
}

// bringAbout applies what the forks consist of and looks at what has become of
// them. Nothing is made, and nothing changed, of a sandbox that is refused. The
// error is one that trying again may help against.
func (p *sandboxPass) bringAbout(ctx context.Context, forks []fork, owned []client.Object, refused *refusal) (states []forkState, later error) {
	live := map[objectKey]client.Object{}
	for _, o := range owned {
		live[objectKey{kindOf(o), o.GetName()}] = o
	}
	failed := map[*fork]error{}
	for i := range forks {
		f := &forks[i]
		if f.refusal != nil || refused != nil {
			continue
		}
		for _, o := range f.parts() {
			key := objectKey{kindOf(o), o.GetName()}
			have := live[key]
			if have != nil && have.GetDeletionTimestamp() != nil {
				p.in(time.Second)
				continue
			}
			settled, created, err := p.applier.apply(ctx, p.sb.UID, o, have)
			switch {
			case err != nil && userError(err) && !namespaceEnding(err):
				failed[f] = err
				p.in(30 * time.Second) // a quota that has been raised brings no event
			case err != nil:
				later = errors.Join(later, err)
			case created && o == f.object:
				p.recorder.Eventf(p.sb, nil, corev1.EventTypeNormal, "Forked", "Create", "made %s %s, a fork of %s", key.kind, key.name, workloadName(f.ref))
			}
			if !settled && o == f.object && !f.job() {
				delete(live, key) // what is known of it is out of date
			}
		}
	}
	for i := range forks {
		f := &forks[i]
		pods := p.view.forkPods(p.sb.Namespace, f.ownsPods(p.sb.Name))
		f.addresses = readyAddresses(pods)
		var object any
		if o := live[objectKey{f.kind(), f.name}]; o != nil {
			object = o
		}
		if object == nil && refused != nil {
			states = append(states, unmade(f, "it is not made until the sandbox is accepted"))
			continue
		}
		state := observeFork(f, failed[f], object, pods)
		p.explain(ctx, f, &state)
		if state.ready && state.message == "" && len(f.notes) > 0 {
			state.message = join(f.notes, "; ")
		}
		states = append(states, state)
	}
	return states, later
}

func (f *fork) kind() string {
	if f.job() {
		return "Job"
	}
	return "Deployment"
}

// parts are the objects of one fork, what makes pods first.
func (f *fork) parts() []client.Object {
	out := []client.Object{f.object}
	for _, s := range f.services {
		out = append(out, s.object)
	}
	return out
}

func readyAddresses(pods []corev1.Pod) map[string]bool {
	out := map[string]bool{}
	for i := range pods {
		if p := &pods[i]; p.DeletionTimestamp == nil && isReady(p) {
			for _, a := range p.Status.PodIPs {
				out[a.IP] = true
			}
		}
	}
	return out
}

// namespaceEnding is no mistake of the spec's: the sandbox is about to go, too.
func namespaceEnding(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause)
}

const (
	// explainAfter is how long a pod may take before its events are looked at, and
	// how often they are.
	explainAfter = 1500 * time.Millisecond
	explainEvery = 5 * time.Second
)

// explain asks for events of a pod that does not say what it suffers from: a
// volume's missing ConfigMap, a probe that fails.
func (p *sandboxPass) explain(ctx context.Context, f *fork, s *forkState) {
	pod := s.silent
	if pod == nil {
		delete(p.known.explained, f.hash)
		return
	}
	have := p.known.explained[f.hash]
	if have.pod != pod.UID {
		have = explanation{pod: pod.UID}
	}
	if wait := explainAfter - p.now.Sub(pod.CreationTimestamp.Time); wait > 0 {
		p.in(wait)
		return
	}
	if p.now.Sub(have.at) >= explainEvery {
		have.at = p.now
		switch w, err := warning(ctx, p.live, pod); {
		case err != nil:
			// All else that is known has to be said nevertheless.
			s.message += fmt.Sprintf("; its events, which may say why, cannot be read: %s", short(err.Error(), maxMessage))
		case w != nil:
			have.reason, have.message = w.Reason, w.Message
		}
		p.known.explained[f.hash] = have
	}
	if have.reason != "" {
		s.explain(&corev1.Event{Reason: have.reason, Message: have.message})
	}
	p.in(explainEvery)
}

// status decides what the object's status is to be.
func (p *sandboxPass) status(key string, refused *refusal, forks []fork, states []forkState, res resolution, targets targetView) (v1alpha1.SandboxStatus, error) {
	old := p.sb.Status
	next := v1alpha1.SandboxStatus{RoutingKey: key, Revision: old.Revision, ExpiresAt: expiry(p.sb), Redirects: bounded(res.redirects)}
	var refusals []refusal
	if refused != nil {
		refusals = append(refusals, *refused)
	}
	refusals = append(refusals, res.refusals...)
	for i := range forks {
		if r := forks[i].refusal; r != nil {
			refusals = append(refusals, refusal{r.reason, fmt.Sprintf("fork of %s: %s", workloadName(forks[i].ref), r.message)})
		} else if states[i].invalid {
			refusals = append(refusals, refusal{states[i].reason, fmt.Sprintf("fork of %s: %s", workloadName(forks[i].ref), states[i].message)})
		}
		next.Forks = append(next.Forks, states[i].status)
		next.Forks[i].Message = short(states[i].message, maxMessage)
	}
	if n := len(res.redirects); n > maxStatusRedirects {
		refusals = append(refusals, *refuse(reasonTooMany, "the forks bring %d redirects, of which the first %d are in force: fork less in one sandbox", n, maxStatusRedirects))
	}
	changed := next.RoutingKey != old.RoutingKey || !sameRouting(next.Redirects, old.Redirects)
	if changed {
		next.Revision++
	}

	services, slices := versionsOf(targets, res.services, res.targets, func(n types.NamespacedName) string {
		if n.Namespace != p.sb.Namespace {
			return ""
		}
		return p.applier.version(p.sb.UID, objectKey{"Service", n.Name})
	})
	cluster := p.view.cluster(p.beats, p.nodes, p.now)
	if p.view.err != nil {
		return next, p.view.err
	}
	in := programInput{
		namespace: p.sb.Namespace, generation: p.sb.Generation, revision: next.Revision, version: p.sb.ResourceVersion, changed: changed,
		services: services, slices: slices,
		wasTrue: !changed && held(old.Conditions, v1alpha1.ConditionProgrammed, p.sb.Generation),
	}
	prog, again := judge(cluster, p.known, in)
	p.in(again)
	p.memory.wait(p.req, !prog.strict())
	next.Nodes = nodeCount(prog.coverage)
	next.UncoveredConnections = cluster.connectionsOf(p.sb.Namespace, next.Redirects)
	next.KeyNames = cluster.keyNames()

	c := conditions{list: deepCopyConditions(old.Conditions), generation: p.sb.Generation}
	c.accept(refusals, res.notes)
	if refused != nil && len(forks) > 0 {
		c.set(v1alpha1.ConditionForksReady, false, reasonForksRefused, "no forks are made or changed until the sandbox is accepted")
	} else {
		c.forks(states)
	}
	c.program(&prog)
	wasReady := !changed && held(old.Conditions, v1alpha1.ConditionReady, p.sb.Generation)
	c.ready(&prog, wasReady, next.KeyNames, withoutJobs(next.Redirects, forks), v1alpha1.ConditionAccepted, v1alpha1.ConditionForksReady, v1alpha1.ConditionProgrammed)
	next.Conditions = c.list
	return next, nil
}

// withoutJobs leaves out redirects to Jobs, which end.
func withoutJobs(all []v1alpha1.RedirectStatus, forks []fork) []v1alpha1.RedirectStatus {
	jobs := map[string]bool{}
	for i := range forks {
		if forks[i].job() {
			jobs[workloadName(forks[i].ref)] = true
		}
	}
	var out []v1alpha1.RedirectStatus
	for _, r := range all {
		if !jobs[r.Fork] {
			out = append(out, r)
		}
	}
	return out
}

func deepCopyConditions(in []metav1.Condition) []metav1.Condition {
	return append([]metav1.Condition(nil), in...)
}

// prunable are objects that the forks do not consist of any more, and that no
// redirect leads to.
func prunable(owned []client.Object, forks []fork, redirects []v1alpha1.RedirectStatus) []client.Object {
	keep := planned(forks)
	for _, r := range redirects {
		if r.Fork != "" && !r.Refused {
			keep[objectKey{"Service", r.To.Service}] = true
		}
	}
	orphans := map[string]bool{}
	for i := range forks {
		if forks[i].orphan {
			orphans[forks[i].hash] = true
		}
	}
	var out []client.Object
	for _, o := range owned {
		if !keep[objectKey{kindOf(o), o.GetName()}] && !orphans[o.GetLabels()[forkLabel]] && o.GetDeletionTimestamp() == nil {
			out = append(out, o)
		}
	}
	return out
}

func kindOf(o client.Object) string {
	switch o.(type) {
	case *appsv1.Deployment:
		return "Deployment"
	case *batchv1.Job:
		return "Job"
	case *corev1.Service:
		return "Service"
	}
	return ""
}
