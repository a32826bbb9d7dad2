// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds that the schema has as well.
const (
	maxForks         = 32
	maxRedirects     = 128
	maxContainers    = 32
	maxEnv           = 128
	maxRemoved       = 64
	maxMembers       = 32
	maxObserved      = 128
	maxTTL           = 8760 * time.Hour
	maxWorkloadName  = 253
	maxContainerName = 63
)

var routingKey = regexp.MustCompile(`^[A-Za-z0-9._~-]{8,64}$`)

// Validate reports what is wrong with a Sandbox, each with its field and what to
// do about it. It says the same as the CRD's schema, for objects that no API
// server has seen. No error contains the routing key.
func (s *Sandbox) Validate() field.ErrorList {
	return append(validateMeta(&s.ObjectMeta, "sandbox"), s.Spec.validate(field.NewPath("spec"))...)
}

// Validate reports what is wrong with a RouteGroup, as it does for a Sandbox.
func (g *RouteGroup) Validate() field.ErrorList {
	return append(validateMeta(&g.ObjectMeta, "route group"), g.Spec.validate(field.NewPath("spec"))...)
}

func validateMeta(m *metav1.ObjectMeta, what string) field.ErrorList {
	var errs field.ErrorList
	at := field.NewPath("metadata")
	if m.Name == "" {
		errs = append(errs, field.Required(at.Child("name"), "name the "+what))
	} else if validation.IsDNS1123Label(m.Name) != nil {
		// A label, not a subdomain: it is the value of the label on its pods.
		errs = append(errs, invalid(at.Child("name"),
			"%q cannot be a label's value: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit", m.Name))
	}
	return append(errs, validateNamespace(at.Child("namespace"), m.Namespace)...)
}

func validateNamespace(at *field.Path, namespace string) field.ErrorList {
	if namespace == "" || validation.IsDNS1123Label(namespace) == nil {
		return nil
	}
	return field.ErrorList{invalid(at,
		"%q is not a namespace's name: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit", namespace)}
}

func validateKey(at *field.Path, key string) field.ErrorList {
	if key == "" || routingKey.MatchString(key) {
		return nil
	}
	return field.ErrorList{invalid(at, "is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~")}
}

func validateExisting(at *field.Path, e ExistingConnections) field.ErrorList {
	switch e {
	case "", ExistingIdle, ExistingAll, ExistingLeave:
		return nil
	}
	return field.ErrorList{invalid(at, "%q is unknown: use Idle, All or Leave", e)}
}

func (s *SandboxSpec) validate(at *field.Path) field.ErrorList {
	errs := validateKey(at.Child("routingKey"), s.RoutingKey)
	if s.TTL != nil {
		switch d := s.TTL.Duration; {
		case d <= 0:
			errs = append(errs, invalid(at.Child("ttl"),
				"%s is over before it begins: use a positive duration such as 2h, or leave it out", d))
		case d > maxTTL:
			errs = append(errs, invalid(at.Child("ttl"),
				"%s is longer than a year (8760h): leave it out for a sandbox that stays", d))
		}
	}
	forks, redirects := at.Child("forks"), at.Child("redirects")
	errs = append(errs, atMost(forks, len(s.Forks), maxForks)...)
	workloads := map[WorkloadRef]bool{}
	for i := range s.Forks {
		f := &s.Forks[i]
		errs = append(errs, f.validate(forks.Index(i))...)
		w := f.Workload
		if w.Kind == "" {
			w.Kind = "Deployment"
		}
		if workloads[w] {
			errs = append(errs, invalid(forks.Index(i), "%s %s is forked twice: merge the two entries", w.Kind, w.Name))
		}
		workloads[w] = true
	}
	errs = append(errs, atMost(redirects, len(s.Redirects), maxRedirects)...)
	type servicePort struct{ service, port string }
	ports := map[servicePort]bool{}
	for i := range s.Redirects {
		r := &s.Redirects[i]
		errs = append(errs, r.validate(redirects.Index(i))...)
		p := servicePort{service: r.From.Service}
		if r.From.Port != nil {
			p.port = r.From.Port.String()
		}
		if ports[p] {
			errs = append(errs, invalid(redirects.Index(i).Child("from"),
				"the same port of Service %s is redirected twice: remove one of the two entries", p.service))
		}
		ports[p] = true
	}
	errs = append(errs, validateExisting(at.Child("existingConnections"), s.ExistingConnections)...)
	errs = append(errs, validateObserve(at.Child("observe"), s.Observe)...)
	if s.Propagate != "" && s.Propagate != PropagateTraceID {
		errs = append(errs, invalid(at.Child("propagate"), "%q is unknown: use TraceID or leave it out", s.Propagate))
	}
	return errs
}

func validateObserve(at *field.Path, services []string) field.ErrorList {
	errs := atMost(at, len(services), maxObserved)
	seen := map[string]bool{}
	for i, name := range services {
		switch {
		case name != ObserveAll:
			errs = append(errs, validateServiceName(at.Index(i), name, "write metadata.name of one in the sandbox's namespace, or \"*\" for all")...)
		case len(services) > 1:
			errs = append(errs, invalid(at, "has \"*\", which means every Service already: remove the other entries or \"*\""))
		}
		if seen[name] {
			errs = append(errs, invalid(at.Index(i), "%q is there twice: remove one of the two", name))
		}
		seen[name] = true
	}
	return errs
}

func atMost(at *field.Path, n, most int) field.ErrorList {
	if n <= most {
		return nil
	}
	return field.ErrorList{field.TooMany(at, n, most)}
}

func (f *Fork) validate(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch f.Workload.Kind {
	case "", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "CronJob":
	default:
		errs = append(errs, invalid(at.Child("workload", "kind"),
			"%q cannot be forked: use Deployment, StatefulSet, DaemonSet, ReplicaSet or CronJob", f.Workload.Kind))
	}
	if f.Workload.Name == "" {
		errs = append(errs, field.Required(at.Child("workload", "name"), "name the workload to fork"))
	} else if len(f.Workload.Name) > maxWorkloadName {
		errs = append(errs, field.TooLong(at.Child("workload", "name"), "", maxWorkloadName))
	}
	errs = append(errs, atMost(at.Child("containers"), len(f.Containers), maxContainers)...)
	seen := map[string]bool{}
	for i := range f.Containers {
		c := &f.Containers[i]
		errs = append(errs, c.validate(at.Child("containers").Index(i), seen)...)
		seen[c.Name] = true
	}
	return errs
}

func (c *ContainerOverride) validate(at *field.Path, seen map[string]bool) field.ErrorList {
	var errs field.ErrorList
	switch {
	case c.Name == "":
		errs = append(errs, field.Required(at.Child("name"), "name a container of the workload's pod template"))
	case len(c.Name) > maxContainerName:
		errs = append(errs, field.TooLong(at.Child("name"), "", maxContainerName))
	case seen[c.Name]:
		errs = append(errs, invalid(at.Child("name"), "%q is there twice: merge the two entries", c.Name))
	}
	env, remove := at.Child("env"), at.Child("removeEnv")
	errs = append(errs, atMost(env, len(c.Env), maxEnv)...)
	errs = append(errs, atMost(remove, len(c.RemoveEnv), maxRemoved)...)
	set, removed := map[string]bool{}, map[string]bool{}
	for i, e := range c.Env {
		switch name := env.Index(i).Child("name"); {
		case e.Name == "":
			errs = append(errs, field.Required(name, "a variable has no name"))
		case set[e.Name]:
			errs = append(errs, invalid(name, "%q is there twice: remove one of the two", e.Name))
		}
		set[e.Name] = true
	}
	for i, name := range c.RemoveEnv {
		switch at := remove.Index(i); {
		case name == "":
			errs = append(errs, field.Required(at, "a variable has no name"))
		case set[name]:
			errs = append(errs, invalid(at, "names a variable that env sets: remove %q from one of the two", name))
		case removed[name]:
			errs = append(errs, invalid(at, "%q is there twice: remove one of the two", name))
		}
		removed[name] = true
	}
	return errs
}

func (r *Redirect) validate(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	from, to := at.Child("from"), at.Child("to")
	if r.From.Service == "" {
		errs = append(errs, field.Required(from.Child("service"), "name the Service whose tagged traffic is redirected"))
	} else {
		errs = append(errs, validateServiceName(from.Child("service"), r.From.Service, "write metadata.name of one in the sandbox's namespace")...)
	}
	errs = append(errs, validatePort(from.Child("port"), r.From.Port)...)
	errs = append(errs, r.To.validate(to)...)
	switch r.Unavailable {
	case "", UnavailableReject, UnavailableBaseline:
	default:
		errs = append(errs, invalid(at.Child("unavailable"), "%q is unknown: use Reject or Baseline", r.Unavailable))
	}
	return errs
}

func (t *RedirectTo) validate(at *field.Path) field.ErrorList {
	errs := validatePort(at.Child("port"), t.Port)
	errs = append(errs, validateNamespace(at.Child("namespace"), t.Namespace)...)
	if t.Namespace != "" && t.Service == "" {
		errs = append(errs, invalid(at.Child("namespace"), "is the namespace of service, which is not set: an address is in no namespace"))
	}
	switch {
	case (t.Service == "") == (t.Address == ""):
		return append(errs, invalid(at, "set exactly one of service or address"))
	case t.Service != "":
		return append(errs, validateServiceName(at.Child("service"), t.Service, "write the metadata.name of one")...)
	}
	addr, err := netip.ParseAddr(t.Address)
	switch {
	case err != nil || addr.Zone() != "":
		errs = append(errs, invalid(at.Child("address"),
			"%q is not an IP address: write one such as 10.0.0.9 or 2001:db8::9, and the port in to.port", t.Address))
	case addr.Is4In6():
		errs = append(errs, invalid(at.Child("address"), "%q is an IPv4 address: write it as %s", t.Address, addr.Unmap()))
	case !addr.IsGlobalUnicast():
		errs = append(errs, invalid(at.Child("address"),
			"%s means something else on every node or in every pod: use an address that is the same for all", t.Address))
	}
	if t.Port != nil && t.Port.Type == intstr.String && !isPortNumber(t.Port.StrVal) {
		errs = append(errs, invalid(at.Child("port"),
			"%q is a name, and an address has no named ports: use a number, 1 to 65535", t.Port.StrVal))
	}
	return errs
}

func (s *RouteGroupSpec) validate(at *field.Path) field.ErrorList {
	errs := validateKey(at.Child("routingKey"), s.RoutingKey)
	if len(s.Sandboxes) == 0 && s.Selector == nil {
		errs = append(errs, invalid(at, "set sandboxes, selector or both: a group needs members"))
	}
	members := at.Child("sandboxes")
	errs = append(errs, atMost(members, len(s.Sandboxes), maxMembers)...)
	seen := map[string]bool{}
	for i, m := range s.Sandboxes {
		switch name := members.Index(i).Child("name"); {
		case validation.IsDNS1123Label(m.Name) != nil:
			errs = append(errs, invalid(name, "%q is not the name of a Sandbox: write metadata.name of one in the group's namespace", m.Name))
		case seen[m.Name]:
			errs = append(errs, invalid(name, "%q is there twice: remove one of the two", m.Name))
		}
		seen[m.Name] = true
	}
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		errs = append(errs, invalid(at.Child("selector"), "is not a label selector: %v", err))
	}
	return append(errs, validateExisting(at.Child("existingConnections"), s.ExistingConnections)...)
}

func validateServiceName(at *field.Path, name, remedy string) field.ErrorList {
	if validation.IsDNS1123Label(name) == nil {
		return nil
	}
	return field.ErrorList{invalid(at, "%q is not the name of a Service: %s", name, remedy)}
}

func validatePort(at *field.Path, p *intstr.IntOrString) field.ErrorList {
	switch {
	case p == nil:
		return nil
	case p.Type == intstr.Int && validation.IsValidPortNum(p.IntValue()) != nil:
		return field.ErrorList{invalid(at, "%d is neither a port's number, 1 to 65535, nor its name", p.IntValue())}
	case p.Type == intstr.String && validation.IsDNS1123Label(p.StrVal) != nil:
		return field.ErrorList{invalid(at, "%q is neither a port's number, 1 to 65535, nor its name", p.StrVal)}
	}
	return nil
}

// invalid leaves the bad value to the message, which puts it into a sentence.
func invalid(at *field.Path, format string, args ...any) *field.Error {
	return field.Invalid(at, field.OmitValueType{}, fmt.Sprintf(format, args...))
}

// isPortNumber reports whether a string is a port's number in quotes.
func isPortNumber(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}
