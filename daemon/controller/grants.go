// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"

	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// permitted reports whether some grant of the target's namespace lets Sandboxes
// of another namespace refer to the Service. Every part of a grant is compared
// as it is: there are no wildcards but a "to" without a name.
func permitted(grants []gatewayv1.ReferenceGrant, from string, to types.NamespacedName) bool {
	for i := range grants {
		g := &grants[i]
		if g.Namespace == to.Namespace && g.DeletionTimestamp == nil && grantsFrom(g, from) && grantsTo(g, to.Name) {
			return true
		}
	}
	return false
}

func grantsFrom(g *gatewayv1.ReferenceGrant, namespace string) bool {
	for _, f := range g.Spec.From {
		if f.Group == v1alpha1.Group && f.Kind == v1alpha1.SandboxKind && string(f.Namespace) == namespace {
			return true
		}
	}
	return false
}

func grantsTo(g *gatewayv1.ReferenceGrant, service string) bool {
	for _, t := range g.Spec.To {
		if t.Group == "" && t.Kind == "Service" && (t.Name == nil || *t.Name == "" || string(*t.Name) == service) {
			return true
		}
	}
	return false
}

const grantsResource = "referencegrants.gateway.networking.k8s.io"

func grantRemedy(from string, to types.NamespacedName, served bool) string {
	if !served {
		return fmt.Sprintf("that takes a ReferenceGrant there, and the cluster does not have the resource definition %s (Gateway API): install it", grantsResource)
	}
	return fmt.Sprintf("create a ReferenceGrant in namespace %s with from {group: %s, kind: %s, namespace: %s} and to {group: \"\", kind: Service, name: %s}",
		to.Namespace, v1alpha1.Group, v1alpha1.SandboxKind, from, to.Name)
}
