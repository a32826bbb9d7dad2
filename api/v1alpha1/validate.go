// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var routingKey = regexp.MustCompile(`^[A-Za-z0-9._~-]{8,64}$`)

// Validate reports what is wrong with a Sandbox, each with its field and what to
// do about it. It says the same as the CRD's schema, for objects that no API
// server has seen. No error contains the routing key.
func (s *Sandbox) Validate() field.ErrorList {
	var errs field.ErrorList
	meta := field.NewPath("metadata")
	if s.Name == "" {
		errs = append(errs, field.Required(meta.Child("name"), "name the sandbox"))
	} else if validation.IsDNS1123Label(s.Name) != nil {
		// A label, not a subdomain: it is the value of the label on its pods.
		errs = append(errs, invalid(meta.Child("name"),
			"%q cannot be a label's value: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit", s.Name))
	}
	if s.Namespace != "" && validation.IsDNS1123Label(s.Namespace) != nil {
		errs = append(errs, invalid(meta.Child("namespace"),
			"%q is not a namespace's name: use at most 63 of a-z 0-9 and -, beginning and ending with a letter or digit", s.Namespace))
	}
	return append(errs, s.Spec.validate(field.NewPath("spec"))...)
}

func (s *SandboxSpec) validate(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s.RoutingKey != "" && !routingKey.MatchString(s.RoutingKey) {
		errs = append(errs, invalid(at.Child("routingKey"),
			"is not a routing key: use 8 to 64 of A-Z a-z 0-9 - . _ ~"))
	}
	if s.TTL != nil && s.TTL.Duration <= 0 {
		errs = append(errs, invalid(at.Child("ttl"),
			"%s is over before it begins: use a positive duration such as 2h, or leave it out", s.TTL.Duration))
	}
	for i := range s.Forks {
		errs = append(errs, s.Forks[i].validate(at.Child("forks").Index(i))...)
	}
	for i := range s.Redirects {
		errs = append(errs, s.Redirects[i].validate(at.Child("redirects").Index(i))...)
	}
	switch s.ExistingConnections {
	case "", ExistingIdle, ExistingAll, ExistingLeave:
	default:
		errs = append(errs, invalid(at.Child("existingConnections"),
			"%q is unknown: use Idle, All or Leave", s.ExistingConnections))
	}
	return errs
}

func (f *Fork) validate(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	switch f.Workload.Kind {
	case "", "Deployment", "StatefulSet", "DaemonSet":
	default:
		errs = append(errs, invalid(at.Child("workload", "kind"),
			"%q cannot be forked: use Deployment, StatefulSet or DaemonSet", f.Workload.Kind))
	}
	if f.Workload.Name == "" {
		errs = append(errs, field.Required(at.Child("workload", "name"), "name the workload to fork"))
	}
	seen := map[string]bool{}
	for i, c := range f.Containers {
		name := at.Child("containers").Index(i).Child("name")
		switch {
		case c.Name == "":
			errs = append(errs, field.Required(name, "name a container of the workload's pod template"))
		case seen[c.Name]:
			errs = append(errs, invalid(name, "%q is there twice: merge the two entries", c.Name))
		}
		seen[c.Name] = true
	}
	return errs
}

func (r *Redirect) validate(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	from, to := at.Child("from"), at.Child("to")
	if r.From.Service == "" {
		errs = append(errs, field.Required(from.Child("service"), "name the Service whose tagged traffic is redirected"))
	} else {
		errs = append(errs, validateServiceName(from.Child("service"), r.From.Service)...)
	}
	errs = append(errs, validatePort(from.Child("port"), r.From.Port)...)
	errs = append(errs, validatePort(to.Child("port"), r.To.Port)...)
	switch {
	case (r.To.Service == "") == (r.To.Address == ""):
		errs = append(errs, invalid(to, "set exactly one of service or address"))
	case r.To.Service != "":
		errs = append(errs, validateServiceName(to.Child("service"), r.To.Service)...)
	default:
		addr, err := netip.ParseAddr(r.To.Address)
		switch {
		case err != nil:
			errs = append(errs, invalid(to.Child("address"),
				"%q is not an IP address: write one such as 10.0.0.9 or 2001:db8::9, and the port in to.port", r.To.Address))
		case addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() || addr.Unmap().IsLoopback():
			errs = append(errs, invalid(to.Child("address"),
				"%s means something else in every pod: use an address that pods can reach", r.To.Address))
		}
		if r.To.Port != nil && r.To.Port.Type == intstr.String && !isPortNumber(r.To.Port.StrVal) {
			errs = append(errs, invalid(to.Child("port"),
				"%q is a name, and an address has no named ports: use a number", r.To.Port.StrVal))
		}
	}
	switch r.Unavailable {
	case "", UnavailableReject, UnavailableBaseline:
	default:
		errs = append(errs, invalid(at.Child("unavailable"), "%q is unknown: use Reject or Baseline", r.Unavailable))
	}
	return errs
}

func validateServiceName(at *field.Path, name string) field.ErrorList {
	if validation.IsDNS1123Subdomain(name) == nil {
		return nil
	}
	return field.ErrorList{invalid(at, "%q is not the name of a Service: write metadata.name of one in the sandbox's namespace", name)}
}

func validatePort(at *field.Path, p *intstr.IntOrString) field.ErrorList {
	switch {
	case p == nil:
		return nil
	case p.Type == intstr.Int && validation.IsValidPortNum(p.IntValue()) != nil:
		return field.ErrorList{invalid(at, "%d is not a port number: use 1 to 65535, or a port's name", p.IntValue())}
	case p.Type == intstr.String && validation.IsDNS1123Label(p.StrVal) != nil:
		return field.ErrorList{invalid(at, "%q is neither a port's name nor a number", p.StrVal)}
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
