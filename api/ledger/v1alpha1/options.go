// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Bounds of Options.
const (
	// DefaultLimit is the limit of a request that names none.
	DefaultLimit = 1000
	// MaxLimit is the largest limit.
	MaxLimit = 20000
)

// Options say which records are wanted, as parameters of a query.
//
// +kubebuilder:object:generate=false
type Options struct {
	// Since leaves out what is older: parameter since, in RFC 3339 or as a duration
	// before now such as 10m. The zero Time: all that there is.
	Since time.Time
	// Trace leaves out what is not of this trace: parameter trace, 32 hexadecimal
	// digits.
	Trace string
	// Limit is how many records there are at most, the newest: parameter limit.
	// Zero: DefaultLimit. A stream begins with so many and then has no limit.
	Limit int
	// Follow wants a stream: parameter follow=true.
	Follow bool
}

// Path returns the path and query of a request for the records of a Sandbox or
// RouteGroup; resource is "sandboxes" or "routegroups".
//
// A request that follows has the prefix watch, which tells the API server that it
// may last: without it, it would end after a minute.
func (o *Options) Path(resource, namespace, name string) string {
	path := "/apis/" + APIVersion
	if o.Follow {
		path += "/watch"
	}
	path += "/namespaces/" + url.PathEscape(namespace) + "/" + resource + "/" + url.PathEscape(name) + "/records"
	if q := o.Values().Encode(); q != "" {
		path += "?" + q
	}
	return path
}

// Values returns the options as parameters of a query.
func (o *Options) Values() url.Values {
	q := url.Values{}
	if !o.Since.IsZero() {
		q.Set("since", o.Since.UTC().Format(time.RFC3339Nano))
	}
	if o.Trace != "" {
		q.Set("trace", o.Trace)
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Follow {
		q.Set("follow", "true")
	}
	return q
}

// ParseOptions reads what Values writes. An error names the parameter and says
// what it should be; parameters that it does not know are errors as well.
func ParseOptions(q url.Values, now time.Time) (Options, error) {
	o := Options{Limit: DefaultLimit}
	for name, values := range q {
		if len(values) != 1 {
			return Options{}, fmt.Errorf("%s is there %d times: give it once", name, len(values))
		}
		v := values[0]
		switch name {
		case "since":
			at, err := time.Parse(time.RFC3339Nano, v)
			if d, e := time.ParseDuration(v); e == nil && d >= 0 {
				at, err = now.Add(-d), nil
			}
			if err != nil {
				return Options{}, fmt.Errorf("since: %q is neither a time such as 2006-01-02T15:04:05Z nor a duration such as 10m", v)
			}
			o.Since = at
		case "trace":
			if !ValidTraceID(v) {
				return Options{}, fmt.Errorf("trace: %q is not a trace id: use 32 of 0-9 a-f, not all zero", v)
			}
			o.Trace = v
		case "limit":
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > MaxLimit {
				return Options{}, fmt.Errorf("limit: %q is not a number from 1 to %d", v, MaxLimit)
			}
			o.Limit = n
		case "follow":
			follow, err := strconv.ParseBool(v)
			if err != nil {
				return Options{}, fmt.Errorf("follow: %q is neither true nor false", v)
			}
			o.Follow = follow
		default:
			return Options{}, fmt.Errorf("%s is unknown: use since, trace, limit or follow", name)
		}
	}
	return o, nil
}

// ValidTraceID reports whether id is a trace id as W3C Trace Context (section
// 3.2.2.3) writes it: 32 hexadecimal digits in small letters, not all zero.
func ValidTraceID(id string) bool {
	if len(id) != 32 {
		return false
	}
	zero := true
	for i := range len(id) {
		switch c := id[i]; {
		case c == '0':
		case '1' <= c && c <= '9', 'a' <= c && c <= 'f':
			zero = false
		default:
			return false
		}
	}
	return !zero
}
