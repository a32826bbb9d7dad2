// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Result is how one thing is.
type Result string

// The results. Unknown is what the user may not look at; Optional is not there, and
// only what needs it does not work.
const (
	OK       Result = "ok"
	Missing  Result = "MISSING"
	Unknown  Result = "unknown"
	Optional Result = "optional"
)

// Check is one thing that a user needs.
type Check struct {
	Name   string `json:"name"`
	Result Result `json:"result"`
	Detail string `json:"detail"`
	// Remedy says what to do where it is not there.
	Remedy string `json:"remedy,omitempty"`
}

// oldest is the first version of Kubernetes that will do.
var oldest = version.MustParseGeneric("1.35")

const installRemedy = "kubectl apply --server-side -f deploy/install.yaml"

// Doctor looks whether everything is there, in the order in which to mend it. It
// fails only where the API server cannot be talked to.
func Doctor(ctx context.Context, c *cluster.Cluster, namespace, program string) ([]Check, error) {
	if namespace == "" {
		namespace = c.Namespace
	}
	d := doctor{c: c, namespace: namespace, program: program, home: cluster.SystemNamespace}
	info, err := c.Core.Discovery().ServerVersionWithContext(ctx)
	if err != nil {
		return nil, cluster.Explain(err, "ask the API server for its version")
	}
	d.kubernetes(info.GitVersion)
	if err := d.kinds(ctx); err != nil {
		return nil, err
	}
	d.controller(ctx)
	d.agents(ctx)
	d.keyNames(ctx)
	d.ledger(ctx)
	if err := d.permissions(ctx); err != nil {
		return nil, err
	}
	return d.checks, nil
}

// Ready reports whether nothing is missing.
func Ready(checks []Check) bool {
	return !slices.ContainsFunc(checks, func(c Check) bool { return c.Result == Missing })
}

type doctor struct {
	c                  *cluster.Cluster
	namespace, program string
	home               string // where Sidetrack is installed, as far as is known
	checks             []Check
}

func (d *doctor) add(name string, r Result, remedy, format string, args ...any) {
	if r == OK {
		remedy = ""
	}
	d.checks = append(d.checks, Check{name, r, fmt.Sprintf(format, args...), remedy})
}

func (d *doctor) kubernetes(git string) {
	v, err := version.ParseGeneric(git)
	if err == nil && v.LessThan(oldest) {
		d.add("Kubernetes", Missing, "upgrade it to "+oldest.String(), "%s is too old: resource versions cannot be compared before %s", git, oldest)
		return
	}
	d.add("Kubernetes", OK, "", "%s", git)
}

// kinds looks for our resource definitions.
func (d *doctor) kinds(ctx context.Context) error {
	served, err := d.c.Core.Discovery().ServerResourcesForGroupVersionWithContext(ctx, v1alpha1.APIVersion)
	if err != nil && !apierrors.IsNotFound(err) {
		return cluster.Explain(err, "ask the API server for its kinds")
	}
	have := map[string]bool{}
	if served != nil {
		for i := range served.APIResources {
			have[served.APIResources[i].Name] = true
		}
	}
	var missing []string
	for _, name := range []string{"sandboxes", "routegroups", "nodestates"} {
		if !have[name] {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		d.add("CRDs", Missing, installRemedy, "%s: not known in group %s", strings.Join(missing, ", "), v1alpha1.APIVersion)
		return nil
	}
	d.add("CRDs", OK, "", "sandboxes, routegroups, nodestates (%s)", v1alpha1.APIVersion)
	return nil
}

func (d *doctor) controller(ctx context.Context) {
	var list appsv1.DeploymentList
	if err := d.c.Objects.List(ctx, &list, client.MatchingLabels(cluster.ControllerLabels)); err != nil {
		d.unseen("controller", "deployments of all namespaces", err)
		return
	}
	i, err := cluster.Ours(ctx, d.c, cluster.Controller, list.Items)
	switch {
	case err != nil:
		d.add("controller", Unknown, "ask an administrator to run this", "%s", message(err))
		return
	case i < 0:
		d.add("controller", Missing, installRemedy, "there is no Deployment of it%s", strangers(list.Items, -1))
		return
	}
	x := &list.Items[i]
	d.home = x.Namespace
	image := ""
	if all := x.Spec.Template.Spec.Containers; len(all) > 0 {
		image = all[0].Image
	}
	detail := fmt.Sprintf("%s/%s: %d of %d ready, image %s%s", x.Namespace, x.Name, x.Status.ReadyReplicas, x.Status.Replicas, image, strangers(list.Items, i))
	if x.Status.ReadyReplicas == 0 {
		d.add("controller", Missing, fmt.Sprintf("kubectl -n %s describe deployment %s; kubectl -n %[1]s logs deployment/%s", x.Namespace, x.Name, x.Name), "%s", detail)
		return
	}
	d.add("controller", OK, "", "%s", detail)
}

// strangers names objects that have Sidetrack's labels and are not the installation's.
func strangers(all []appsv1.Deployment, ours int) string {
	var names []string
	for i := range all {
		if i != ours {
			names = append(names, all[i].Namespace+"/"+all[i].Name)
		}
	}
	if names == nil {
		return ""
	}
	return "; not of this installation, though the labels say so: " + strings.Join(names, ", ")
}

// message is what has failed, without the remedy, which is not for doctor's user.
func message(err error) string {
	var f *task.Failure
	if errors.As(err, &f) {
		return f.Message
	}
	return err.Error()
}

// unseen says that the user may not look, which is no fault of the cluster.
func (d *doctor) unseen(name, what string, err error) {
	if apierrors.IsForbidden(err) {
		d.add(name, Unknown, "ask an administrator to run this", "you may not list %s", what)
		return
	}
	d.add(name, Unknown, "", "%s", err)
}

// agents looks for an agent on every node, and for what agents say.
func (d *doctor) agents(ctx context.Context) {
	if d.checks[1].Result != OK {
		d.add("agents", Missing, installRemedy, "without the CRDs there can be none")
		return
	}
	all, hidden, err := nodes(ctx, d.c, nil)
	switch {
	case err != nil:
		d.add("agents", Unknown, "", "%s", err)
		return
	case hidden != "":
		d.add("agents", Unknown, "ask an administrator to run this", "%s", hidden)
		return
	case len(all) == 0:
		d.add("agents", Missing, installRemedy+"; if it is installed: kubectl -n "+d.home+" describe daemonset sidetrack-agent", "no node has an agent")
		return
	}
	versions := map[string]bool{}
	bad := 0
	for i := range all {
		n := &all[i]
		if n.Agent != "" {
			versions[n.Agent] = true
		}
		if n.OK {
			continue
		}
		bad++
		d.add("node "+n.Name, Missing, fmt.Sprintf("kubectl -n %s get pods -l app.kubernetes.io/component=agent --field-selector spec.nodeName=%s; its log says what the kernel lacks", d.home, n.Name),
			"%s", strings.Join(append([]string{n.State}, n.Problems...), "; "))
	}
	var names []string
	for v := range versions {
		names = append(names, v)
	}
	slices.Sort(names)
	if bad == 0 {
		d.add("agents", OK, "", "on %d of %d nodes, version %s", len(all), len(all), strings.Join(names, ", "))
	}
	if len(names) > 1 {
		d.add("versions", Optional, "see whether a rolling update goes on: kubectl -n "+d.home+" rollout status daemonset/sidetrack-agent", "agents of several versions: %s", strings.Join(names, ", "))
	}
	for i := range all {
		if n := &all[i]; n.OK && len(n.Problems) > 0 {
			d.add("node "+n.Name, Optional, "see what the problem says; kubectl describe nodestate "+n.Name+" has all", "%s", strings.Join(n.Problems, "; "))
		}
	}
}

func (d *doctor) ledger(ctx context.Context) {
	const need = "trace, and the hops of explain, need it"
	_, err := d.c.Core.Discovery().ServerResourcesForGroupVersionWithContext(ctx, ledger.APIVersion)
	switch {
	case err == nil:
		d.add("ledger", OK, "", "%s is served", ledger.APIVersion)
	case apierrors.IsNotFound(err):
		d.add("ledger", Optional, "install a version of Sidetrack that has it: "+installRemedy, "%s is not served: %s", ledger.APIVersion, need)
	default:
		d.add("ledger", Missing, "kubectl get apiservice v1alpha1."+ledger.Group+" -o yaml says why", "%s does not answer: %v", ledger.APIVersion, err)
	}
}

// permission is something that a user of this program does.
type permission struct {
	verb, group, resource, subresource string
	// wanted by these commands.
	commands string
}

var permissions = []permission{
	{"list", v1alpha1.Group, "sandboxes", "", "all"},
	{"watch", v1alpha1.Group, "sandboxes", "", "wait"},
	{"create", v1alpha1.Group, "sandboxes", "", "create, apply"},
	{"patch", v1alpha1.Group, "sandboxes", "", "create --update, apply"},
	{"delete", v1alpha1.Group, "sandboxes", "", "delete"},
	{"get", "apps", "deployments", "", "create"},
	{"list", "", "pods", "", "wait, logs"},
	{"get", "", "pods", "log", "logs, run"},
	{"watch", "", "pods", "", "run, proxy, diff"},
	{"create", "", "pods", "", "run, proxy, diff"},
	{"delete", "", "pods", "", "run, proxy, diff"},
	{"create", "", "pods", "portforward", "proxy, diff"},
}

// permissions asks the API server what the user may do in the namespace.
func (d *doctor) permissions(ctx context.Context) error {
	if f := (*task.Failure)(nil); errors.As(d.c.NoNamespace(ctx, d.namespace), &f) {
		d.add("namespace", Missing, f.Remedy, "%s", f.Message)
	}
	var lacking []string
	for _, p := range permissions {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: d.namespace, Verb: p.verb, Group: p.group, Resource: p.resource, Subresource: p.subresource,
		}}}
		got, err := d.c.Core.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err != nil {
			return cluster.Explain(err, "ask the API server what you may do")
		}
		if !got.Status.Allowed {
			what := p.resource
			if p.subresource != "" {
				what += "/" + p.subresource
			}
			lacking = append(lacking, fmt.Sprintf("%s %s (for %s)", p.verb, what, p.commands))
		}
	}
	if len(lacking) > 0 {
		d.add("permissions", Missing, "ask for ClusterRole edit in the namespace: kubectl create rolebinding NAME -n "+d.namespace+" --clusterrole=edit --user=YOU",
			"in namespace %s you may not %s", d.namespace, strings.Join(lacking, ", "))
		return nil
	}
	d.add("permissions", OK, "", "in namespace %s you may do all that this program does", d.namespace)
	return nil
}
