// SPDX-License-Identifier: Apache-2.0

package ui

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// folder is where the API server shows the page.
const folder = "/apis/ledger.sidetrack.dev/v1alpha1/ui/"

// Index is the path of the page on the API server.
const Index = folder + "index.html"

// table asks for what kubectl prints of objects: of a pod, neither its environment
// nor its arguments.
const table = "application/json;as=Table;v=v1;g=meta.k8s.io"

// allowance is a kind of paths that the page reads.
type allowance struct {
	path *regexp.Regexp
	// query has the parameters that there may be, and what their values are like.
	query map[string]*regexp.Regexp
	// accept is what is asked for.
	accept string
	// file says that it is one of the page's own files, and no object.
	file bool
}

const (
	namespace = `/namespaces/[a-z0-9][a-z0-9-]{0,62}`
	owner     = `/(?:sandboxes|routegroups)`
	name      = `/[a-z0-9][a-z0-9.-]{0,252}`
)

func whole(pattern string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + pattern + `)\z`) }

// allowances are all that the page reads.
var allowances = []allowance{
	{path: whole(folder + `[A-Za-z0-9][A-Za-z0-9._-]*`), accept: "*/*", file: true},
	{path: whole(`/apis/sidetrack\.dev/v1alpha1(?:` + namespace + `)?` + owner), accept: "application/json"},
	{path: whole(`/apis/sidetrack\.dev/v1alpha1` + namespace + owner + name), accept: "application/json"},
	{path: whole(`/apis/sidetrack\.dev/v1alpha1/nodestates`), accept: "application/json"},
	{
		path: whole(`/apis/ledger\.sidetrack\.dev/v1alpha1(?:/watch)?` + namespace + owner + name + `/records`), accept: "application/json",
		query: map[string]*regexp.Regexp{"follow": whole(`true|false`), "limit": whole(`[0-9]{1,5}`), "since": whole(`[0-9A-Za-z:.+-]{1,40}`), "trace": whole(`[0-9a-f]{32}`)},
	},
	{
		path: whole(`/api/v1` + namespace + `/pods`), accept: table,
		query: map[string]*regexp.Regexp{"labelSelector": whole(`sidetrack\.dev/sandbox=[a-z0-9][a-z0-9-]{0,62}`)},
	},
}

// allowed finds the allowance for a path of the API server, which has to be written
// as plainly as can be, and its query.
func allowed(u *url.URL, path string) *allowance {
	if u.RawPath != "" || strings.Contains(path, "//") || strings.Contains(path, "/.") {
		return nil
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil
	}
	for i := range allowances {
		a := &allowances[i]
		if a.path.MatchString(path) && a.takes(query) {
			return a
		}
	}
	return nil
}

func (a *allowance) takes(query url.Values) bool {
	for name, values := range query {
		pattern := a.query[name]
		if pattern == nil || len(values) != 1 || !pattern.MatchString(values[0]) {
			return false
		}
	}
	// All pods of a namespace are more than a sandbox's.
	return a.accept != table || query.Has("labelSelector")
}

// request returns the headers of a request to the API server: none of the browser's
// but those that say what it has already.
func (a *allowance) request(browser http.Header) http.Header {
	h := http.Header{"Accept": {a.accept}}
	if etag := browser.Get("If-None-Match"); etag != "" && a.file {
		h.Set("If-None-Match", etag)
	}
	return h
}

// kept are the headers of the API server's answers that a browser gets.
var kept = []string{"Content-Type", "Content-Length", "Date", "Etag", "Retry-After"}

// mediaTypes are the types that the page's own files may have.
var mediaTypes = []string{"text/html", "text/css", "text/javascript", "text/plain", "image/svg+xml"}
