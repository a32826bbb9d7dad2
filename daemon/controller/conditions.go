// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// conditions are written with the generation that they are about.
type conditions struct {
	list       []metav1.Condition
	generation int64
}

// maxConditionMessage is what the API takes.
const maxConditionMessage = 32768

func (c *conditions) set(kind string, ok bool, reason, message string) {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	meta.SetStatusCondition(&c.list, metav1.Condition{
		Type: kind, Status: status, ObservedGeneration: c.generation,
		Reason: reason, Message: short(message, maxConditionMessage-8),
	})
}

func (c *conditions) isTrue(kind string) bool { return meta.IsStatusConditionTrue(c.list, kind) }

// held reports whether a condition has been true for this generation before.
func held(list []metav1.Condition, kind string, generation int64) bool {
	c := meta.FindStatusCondition(list, kind)
	return c != nil && c.Status == metav1.ConditionTrue && c.ObservedGeneration == generation
}

// accept sets Accepted from what has been refused; what gives way to something
// else is said, too.
func (c *conditions) accept(refusals []refusal, notes []string) {
	if len(refusals) == 0 {
		c.set(v1alpha1.ConditionAccepted, true, reasonAccepted, strings.Join(append([]string{"all that forks and redirects name is there"}, notes...), "; "))
		return
	}
	var messages []string
	for _, r := range refusals {
		messages = append(messages, r.message)
	}
	c.set(v1alpha1.ConditionAccepted, false, refusals[0].reason, join(append(messages, notes...), "; "))
}

// forks sets ForksReady. What time alone does not help against is said first.
func (c *conditions) forks(states []forkState) {
	if len(states) == 0 {
		c.set(v1alpha1.ConditionForksReady, true, reasonNoForks, "the sandbox has no forks")
		return
	}
	var failing, waiting []string
	var reason string
	ready := 0
	for i := range states {
		s := &states[i]
		message := fmt.Sprintf("fork of %s: %s", workloadName(s.status.Workload), s.message)
		switch {
		case s.ready:
			ready++
		case s.failing:
			if len(failing) == 0 {
				reason = s.reason
			}
			failing = append(failing, message)
		default:
			waiting = append(waiting, message)
		}
	}
	if reason == "" {
		reason = reasonStarting
	}
	if ready == len(states) {
		c.set(v1alpha1.ConditionForksReady, true, reasonForksReady, fmt.Sprintf("%d of %d forks are ready", ready, len(states)))
		return
	}
	c.set(v1alpha1.ConditionForksReady, false, reason, join(append(failing, waiting...), "; "))
}

// programming is what nodes have in force of one object, and had before.
type programming struct {
	coverage coverage
	// current is set when nodes can have been asked for what is in the status:
	// it has been written, and not just now.
	current bool
	// graced is set while nodes take over changes of endpoints.
	graced bool
}

// strict reports that everything is in force everywhere.
func (p *programming) strict() bool { return p.current && p.coverage.complete() }

func (c *conditions) program(p *programming) {
	if !p.current {
		c.set(v1alpha1.ConditionProgrammed, false, reasonWaiting, fmt.Sprintf("0 of %d nodes have it in force: it has just been changed", p.coverage.total))
		return
	}
	reason, message := p.coverage.describe()
	if p.graced && len(p.coverage.uncovered)+len(p.coverage.exposed) == 0 && p.coverage.total > 0 {
		c.set(v1alpha1.ConditionProgrammed, true, reasonProgrammed, fmt.Sprintf("in force on %d of %d nodes", p.coverage.total, p.coverage.total))
		return
	}
	c.set(v1alpha1.ConditionProgrammed, p.strict(), reason, message)
}

// ready sets Ready from the others. wasReady is whether it has been true for this
// generation: then nodes that take over a change of endpoints do not end it.
func (c *conditions) ready(p *programming, wasReady bool, names *v1alpha1.CommonKeyNames, redirects []v1alpha1.RedirectStatus, parts ...string) {
	for _, kind := range parts {
		if cond := meta.FindStatusCondition(c.list, kind); cond == nil || cond.Status != metav1.ConditionTrue {
			reason := map[string]string{
				v1alpha1.ConditionAccepted:   reasonNotAccepted,
				v1alpha1.ConditionForksReady: reasonNotForked,
				v1alpha1.ConditionProgrammed: reasonNotProgramed,
			}[kind]
			message := kind + " is not True"
			if cond != nil {
				message = fmt.Sprintf("%s (%s): %s", kind, cond.Reason, cond.Message)
			}
			c.set(v1alpha1.ConditionReady, false, reason, message)
			return
		}
	}
	var empty []string
	for _, r := range redirects {
		if r.Endpoints == 0 && r.Unavailable != v1alpha1.UnavailableBaseline && !r.Refused {
			empty = append(empty, fmt.Sprintf("%s to %s", r.From.Service, r.To.Service))
		}
	}
	switch {
	case len(empty) > 0:
		c.set(v1alpha1.ConditionReady, false, reasonNoEndpoints, fmt.Sprintf("no ready endpoint for the redirect of Service %s: see the pods behind it", join(empty, ", ")))
	case names != nil && names.Split:
		c.set(v1alpha1.ConditionReady, false, reasonKeyNames, "nodes look for routing keys under different names: "+names.Message)
	case !p.strict() && !wasReady:
		c.set(v1alpha1.ConditionReady, false, reasonNotProgramed, "nodes are taking over the newest endpoints: "+strings.Join(p.coverage.behind, ", "))
	default:
		c.set(v1alpha1.ConditionReady, true, reasonReady, "tagged traffic goes where the redirects say")
	}
}

// sameRouting reports whether two lists of redirects ask the same of nodes.
func sameRouting(a, b []v1alpha1.RedirectStatus) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if routingOf(a[i]) != routingOf(b[i]) {
			return false
		}
	}
	return true
}

func routingOf(r v1alpha1.RedirectStatus) string {
	return fmt.Sprintf("%s %s > %s %s %s %s %v %s", r.From.Service, r.From.Port, r.To.Service, r.To.Namespace, r.To.Address, r.To.Port, r.Refused, r.Unavailable)
}
