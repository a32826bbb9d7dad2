// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
)

// nodeNameExtra is where the API server says which node a pod's token was given out
// for.
const nodeNameExtra = "authentication.kubernetes.io/node-name"

// access asks the API server who may do what.
type access struct {
	reviews authorizationclient.SubjectAccessReviewInterface
}

// mayRead says why somebody may not read an owner's records; empty: they may.
func (a access) mayRead(ctx context.Context, u user.Info, o ledger.Owner) (why string, err error) {
	resource, kind := "sandboxes", v1alpha1.SandboxKind
	if o.Group {
		resource, kind = "routegroups", v1alpha1.RouteGroupKind
	}
	ok, err := a.allowed(ctx, u, authorizationv1.ResourceAttributes{
		Verb: "get", Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: resource, Namespace: o.Name.Namespace, Name: o.Name.Name,
	})
	if err != nil || ok {
		return "", err
	}
	return fmt.Sprintf("user %q may not get %s %s in namespace %q, so not its records either: ask for the role %q there",
		u.GetName(), kind, o.Name.Name, o.Name.Namespace, "view"), nil
}

// mayAnswer says why somebody may not answer for a node; empty: they may. All agents
// have one ServiceAccount; which node's one is the token says.
func (a access) mayAnswer(ctx context.Context, u user.Info, node, verb, subresource string) (why string, err error) {
	ok, err := a.allowed(ctx, u, authorizationv1.ResourceAttributes{
		Verb: verb, Group: ledgerv1alpha1.Group, Version: ledgerv1alpha1.Version, Resource: "nodes", Subresource: subresource, Name: node,
	})
	switch own := u.GetExtra()[nodeNameExtra]; {
	case err != nil:
		return "", err
	case !ok:
		return fmt.Sprintf("user %q may not %s nodes/%s", u.GetName(), verb, subresource), nil
	case len(own) != 1 || own[0] != node:
		return fmt.Sprintf("user %q is of node %q and may not answer for node %q", u.GetName(), own, node), nil
	}
	return "", nil
}

func (a access) allowed(ctx context.Context, u user.Info, what authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), ResourceAttributes: &what,
	}}
	if extra := u.GetExtra(); len(extra) > 0 {
		review.Spec.Extra = make(map[string]authorizationv1.ExtraValue, len(extra))
		for k, v := range extra {
			review.Spec.Extra[k] = v
		}
	}
	done, err := a.reviews.Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask the API server who may: %w", err)
	}
	return done.Status.Allowed && !done.Status.Denied, nil
}
