// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// SystemNamespace is where Sidetrack is installed unless somebody says otherwise.
const SystemNamespace = "sidetrack-system"

// Labels of the agents' DaemonSet and its pods, and of the controller's Deployment. They
// are fixed, as all names are: there is one installation in a cluster.
var (
	AgentLabels      = map[string]string{"app.kubernetes.io/name": "sidetrack", "app.kubernetes.io/component": Agents}
	ControllerLabels = map[string]string{"app.kubernetes.io/name": "sidetrack", "app.kubernetes.io/component": Controller}
)

// Parts of Sidetrack.
const (
	Agents     = "agent"
	Controller = "controller"
)

// object is one of a list's, by its pointer.
type object[T any] interface {
	*T
	client.Object
}

// Ours returns which of the objects of all namespaces that have the labels of a part of
// Sidetrack, Agents or Controller, is of the installation; -1 where none is.
//
// Anybody may label an object of his own namespace like that. So what only an
// administrator can have written decides: the ClusterRoleBinding that gives the part its
// rights names its namespace. For who may not read that: the usual namespace, then the
// only object that there is. Of several, none is believed; the error names them.
func Ours[T any, P object[T]](ctx context.Context, c *Cluster, component string, all []T) (int, error) {
	if len(all) == 0 {
		return -1, nil
	}
	in := func(namespace string) int {
		return slices.IndexFunc(all, func(o T) bool { return P(&o).GetNamespace() == namespace })
	}
	name := "sidetrack-" + component
	var binding rbacv1.ClusterRoleBinding
	switch err := c.Objects.Get(ctx, client.ObjectKey{Name: name}, &binding); {
	case err == nil:
		for _, s := range binding.Subjects {
			if s.Kind == rbacv1.ServiceAccountKind && s.Name == name {
				return in(s.Namespace), nil
			}
		}
	case !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err):
		return -1, Explain(err, "read ClusterRoleBinding "+name)
	}
	if i := in(SystemNamespace); i >= 0 {
		return i, nil
	}
	if len(all) == 1 {
		return 0, nil
	}
	var where []string
	for i := range all {
		o := P(&all[i])
		where = append(where, o.GetNamespace()+"/"+o.GetName())
	}
	return -1, &task.Failure{
		Message: fmt.Sprintf("several objects say by their labels that they are Sidetrack's %s: %s; none is in %s, and you may not read ClusterRoleBinding %s, which tells which is", component, strings.Join(where, ", "), SystemNamespace, name),
		Remedy:  "ask whoever runs the cluster which it is, and name its image with --agent-image or SIDETRACK_AGENT_IMAGE",
	}
}
