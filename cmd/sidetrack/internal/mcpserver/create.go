// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// Many clients give a call up after a minute. What is waited for goes on without
// them, and sandbox_status waits again.
const (
	usualWait = 50
	mostWait  = 900
)

// usualTTL has sandboxes that nobody deletes end by themselves.
const usualTTL = "2h"

type createInput struct {
	Sandbox     string          `json:"sandbox" jsonschema:"name of the sandbox, such as pr-42, or namespace/name"`
	Forks       []forkInput     `json:"forks,omitempty" jsonschema:"the workloads to copy, and what differs in the copies"`
	Redirects   []redirectInput `json:"redirects,omitempty" jsonschema:"Services whose traffic from this sandbox goes somewhere else, such as to a database of its own"`
	Observe     []string        `json:"observe,omitempty" jsonschema:"Services on the way to the forks, the entry URL's first: their hops are shown as well, and who loses the routing key there is named. Name all, or * for the whole namespace; none is none. When left out: what is forked or redirected. Their traffic stays where it is"`
	Heal        bool            `json:"heal,omitempty" jsonschema:"where a service loses the routing key but passes the trace id (traceparent) on, let that stand for it"`
	TTL         string          `json:"ttl,omitempty" jsonschema:"the sandbox is deleted so long after its creation: a duration such as 30m or 2h; never means that it stays"`
	Update      bool            `json:"update,omitempty" jsonschema:"change the sandbox when there is one, to what this call says: forks and redirects that it leaves out are removed"`
	WaitSeconds *int            `json:"wait_seconds,omitempty" jsonschema:"how long to wait until requests reach the forks; 0 does not wait"`
	Detail      detail          `json:"detail,omitempty" jsonschema:"how much the reply says of the sandbox"`
}

type forkInput struct {
	Workload  string            `json:"workload" jsonschema:"from list_workloads, such as Deployment/route"`
	Container string            `json:"container,omitempty" jsonschema:"which container image and env are for; may be left out where the workload has one. Repeat the workload for another container"`
	Image     string            `json:"image,omitempty" jsonschema:"image to run instead"`
	Env       map[string]string `json:"env,omitempty" jsonschema:"environment variables to set"`
	RemoveEnv []string          `json:"remove_env,omitempty" jsonschema:"environment variables to remove"`
}

type redirectInput struct {
	From string `json:"from" jsonschema:"the Service, or service:port"`
	To   string `json:"to" jsonschema:"a Service, namespace/service or an IP address, with :port where it differs"`
}

func (in createInput) wait() time.Duration { return seconds(in.WaitSeconds) }

func seconds(n *int) time.Duration {
	if n == nil {
		return 0
	}
	return time.Duration(*n) * time.Second
}

func createSandbox() tool {
	return define("create_sandbox", "Create or change a sandbox", "your change as a fork",
		`Create a sandbox: forks (copies) of workloads with your image or environment beside the running ones, and wait until requests can reach them. Nothing changes for anybody else. With update: true it changes a sandbox that is there, which is how the next attempt is made. It fails with the containers' own errors and logs when a fork does not start.`,
		adds, func(p properties) {
			tuneDetail(p)
			between(p["wait_seconds"], 0, mostWait, usualWait)
			p["ttl"].Default = []byte(`"` + usualTTL + `"`)
		}, func(ctx context.Context, c call, in createInput) (*sandboxReply, error) {
			r, err := in.request(ctx, c)
			if err != nil {
				return nil, err
			}
			sb, err := r.Build(ctx, c.Cluster)
			if err != nil {
				return nil, err
			}
			var before *v1alpha1.Sandbox
			if in.Update {
				// One that cannot be read cannot be changed, either, which says why.
				before, _ = sandbox.Get(ctx, c.Cluster, sb.Namespace, sb.Name)
				err = sandbox.Apply(ctx, c.Cluster, sb, false)
			} else {
				err = sandbox.Create(ctx, c.Cluster, sb, false)
			}
			if err != nil {
				return nil, err
			}
			out, err := waitReady(ctx, c, sb, in.wait(), in.Detail)
			if err != nil {
				return nil, err
			}
			out.Notes = append(out.Notes, sameForks(before, sb)...)
			out.Notes = append(out.Notes, unknownServices(ctx, c, sb)...)
			return out, nil
		})
}

// sameForks warns who has pushed the next attempt under a tag that the forks run
// already: their pods are not started again, and answer, verified, as they did.
func sameForks(before, now *v1alpha1.Sandbox) []string {
	if before == nil || before.UID != now.UID || len(now.Spec.Forks) == 0 || !equality.Semantic.DeepEqual(before.Spec.Forks, now.Spec.Forks) {
		return nil
	}
	return []string{"nothing differs in the forks: their pods run on with the images that they have. An image pushed again under the same tag is not taken up: push it under a new one, and update again"}
}

// unknownServices warns of what observe names in vain. They may come later.
func unknownServices(ctx context.Context, c call, sb *v1alpha1.Sandbox) []string {
	var notes []string
	for _, name := range sandbox.Unobserved(ctx, c.Cluster, sb) {
		notes = append(notes, "observe names "+name+", and there is no such Service in namespace "+sb.Namespace)
	}
	return notes
}

// request puts it into the library's short form.
func (in createInput) request(ctx context.Context, c call) (sandbox.Request, error) {
	namespace, name, err := parseHandle(in.Sandbox)
	if err != nil {
		return sandbox.Request{}, err
	}
	r := sandbox.Request{Namespace: cmp.Or(namespace, c.Namespace), Name: name, TTL: in.TTL, Observe: in.Observe}
	if in.Heal {
		r.Propagate = string(v1alpha1.PropagateTraceID)
	}
	if in.TTL == "never" {
		r.TTL = ""
	}
	if len(in.Forks) == 0 && len(in.Redirects) == 0 {
		return r, task.Usagef("the sandbox would have neither forks nor redirects: add what you want to change to forks")
	}
	for _, d := range in.Redirects {
		r.Redirects = append(r.Redirects, d.From+"="+d.To)
	}
	for _, f := range in.Forks {
		ref, err := sandbox.ParseWorkload(f.Workload)
		if err != nil {
			return r, err
		}
		workload := sandbox.Name(ref)
		if !slices.Contains(r.Forks, workload) {
			r.Forks = append(r.Forks, workload)
		}
		if f.Image == "" && len(f.Env) == 0 && len(f.RemoveEnv) == 0 {
			continue
		}
		container := f.Container
		if container == "" {
			if container, err = onlyContainer(ctx, c, r.Namespace, workload); err != nil {
				return r, err
			}
		}
		where := workload + "/" + container
		if strings.ContainsAny(f.Image, "= \t\n") {
			return r, task.Usagef("image %q is not the name of an image", f.Image)
		}
		if f.Image != "" {
			r.Images = append(r.Images, where+"="+f.Image)
		}
		for name, value := range f.Env {
			if name == "" || strings.ContainsAny(name, "/=") {
				return r, task.Usagef("env %q is not the name of a variable", name)
			}
			r.Env = append(r.Env, where+"/"+name+"="+value)
		}
		for _, name := range f.RemoveEnv {
			if name == "" || strings.ContainsAny(name, "/=") {
				return r, task.Usagef("remove_env %q is not the name of a variable", name)
			}
			r.Env = append(r.Env, where+"/"+name+"-")
		}
	}
	slices.Sort(r.Env)
	return r, nil
}

// onlyContainer is the container that is meant where none is named.
func onlyContainer(ctx context.Context, c call, namespace, workload string) (string, error) {
	all, err := sandbox.Workloads(ctx, c.Cluster, namespace)
	if err != nil {
		return "", err
	}
	var names, known []string
	for _, w := range all {
		known = append(known, sandbox.Name(w.Ref))
		for _, k := range w.Containers {
			if sandbox.Name(w.Ref) == workload && !k.Init {
				names = append(names, k.Name)
			}
		}
	}
	switch {
	case len(names) == 1:
		return names[0], nil
	case len(names) > 1:
		return "", &task.Failure{Kind: task.Usage, Message: workload + " has several containers: " + strings.Join(names, ", "), Remedy: "say which one with container"}
	}
	f := &task.Failure{Kind: task.Usage, Message: "there is no " + workload + " in namespace " + namespace + " to fork", Remedy: "call list_workloads, also for another namespace"}
	if len(known) > 0 {
		f.Remedy = "there are " + strings.Join(known[:min(len(known), 10)], ", ") + "; list_workloads has the workloads of other namespaces as well"
	}
	return "", f
}
