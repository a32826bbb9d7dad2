// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// slicesVersion is the newest resource version among endpoint slices.
func slicesVersion(all []*discoveryv1.EndpointSlice) (newest string) {
	for _, s := range all {
		newest = newer(newest, s.ResourceVersion)
	}
	return newest
}

// programInput is what deciding on Programmed takes.
type programInput struct {
	namespace            string // the object's
	generation, revision int64
	// written is the object's resource version; changed is set when the status in
	// it is not the one that nodes are to have.
	version string
	changed bool
	group   bool
	// services are known to the API server at these versions at the latest.
	services, slices string
	wasTrue          bool
}

// judge asks nodes for what is in the status, and says how long until nodes that
// lag are said to.
func judge(c *cluster, r *remembered, in programInput) (p programming, again time.Duration) {
	want := versions{services: in.services, slices: in.slices}
	if !in.changed {
		since := r.at(in.generation, in.revision, in.version)
		if in.group {
			want.routeGroups = since
		} else {
			want.sandboxes = since
		}
	}
	p = programming{coverage: c.cover(want, in.namespace), current: !in.changed}
	switch {
	case p.strict() || !p.current || !in.wasTrue:
		r.lagging = time.Time{}
	case r.lagging.IsZero():
		r.lagging = c.now
		fallthrough
	default:
		left := lagGrace - c.now.Sub(r.lagging)
		if p.graced = left > 0; p.graced {
			again = left
		}
	}
	return p, again
}

// versionsOf finds the versions of Services and their slices that nodes have to
// have for redirects.
func versionsOf(view targetView, services, targets []types.NamespacedName, just func(types.NamespacedName) string) (ofServices, ofSlices string) {
	for _, name := range services {
		if s := view.service(name); s != nil {
			ofServices = newer(ofServices, s.ResourceVersion)
		} else {
			ofServices = newer(ofServices, just(name))
		}
	}
	for _, name := range targets {
		ofSlices = newer(ofSlices, slicesVersion(view.slices(name)))
	}
	return ofServices, ofSlices
}

func nodeCount(c coverage) *v1alpha1.NodeCount {
	return &v1alpha1.NodeCount{Programmed: c.programmed, Total: c.total}
}
