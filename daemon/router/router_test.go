// SPDX-License-Identifier: Apache-2.0

package router

import (
	"testing"
)

func get(header string) string {
	return "GET /who HTTP/1.1\r\nHost: route\r\n" + header + "\r\n"
}

const (
	tagged   = "baggage: sidetrack=" + key + "\r\n"
	untagged = ""
)

func TestEachRequestOnAConnectionGoesByItsOwnKey(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork, w.fork2)
	c := w.dial(w.client)
	for _, step := range []struct{ header, want string }{
		{untagged, "base"}, {untagged, "base"}, {tagged, "fork"}, {tagged, "fork"}, {untagged, "base"},
		{"x-sidetrack-key: " + otherKey + "\r\n", "fork2"}, {tagged, "fork"},
		{"tracestate: a=b,sidetrack=" + otherKey + "\r\n", "fork2"},
		{"baggage: sidetrack=nobodys-key\r\n", "base"},
	} {
		c.send(get(step.header))
		if resp, _ := c.response("GET"); resp.Header.Get("X-Served-By") != step.want {
			t.Errorf("a request with %q was served by %s, want %s", step.header, resp.Header.Get("X-Served-By"), step.want)
		}
	}
}
