// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// claimant is an object that wants, or has, a routing key.
type claimant struct {
	kind    string
	name    types.NamespacedName
	uid     types.UID
	created metav1.Time
	holds   bool // it is in the object's status already
}

func sandboxClaim(o *v1alpha1.Sandbox, key string) claimant {
	return claimant{v1alpha1.SandboxKind, types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, o.UID, o.CreationTimestamp, o.Status.RoutingKey == key}
}

func groupClaim(o *v1alpha1.RouteGroup, key string) claimant {
	return claimant{v1alpha1.RouteGroupKind, types.NamespacedName{Namespace: o.Namespace, Name: o.Name}, o.UID, o.CreationTimestamp, o.Status.RoutingKey == key}
}

// before reports whether c keeps a key that o wants as well: whoever has it
// already, so that nobody takes traffic over by choosing a key that is in use;
// then the older one.
func (c claimant) before(o claimant) bool {
	if c.holds != o.holds {
		return c.holds
	}
	if !c.created.Equal(&o.created) {
		return c.created.Before(&o.created)
	}
	return cmp.Or(
		cmp.Compare(c.uid, o.uid), cmp.Compare(c.kind, o.kind),
		cmp.Compare(c.name.Namespace, o.name.Namespace), cmp.Compare(c.name.Name, o.name.Name)) < 0
}

// keyRefused reports whether somebody else keeps the key. Whose it is is nobody's
// business: it may be of another namespace, and keys are secrets.
func keyRefused(me claimant, others []claimant) *refusal {
	for _, o := range others {
		if o.uid != me.uid && o.before(me) {
			return refuse(reasonKeyInUse, "spec.routingKey is in use: create it anew with another key, or without one for a generated key")
		}
	}
	return nil
}
