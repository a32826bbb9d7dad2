// SPDX-License-Identifier: Apache-2.0

package router

import (
	"io"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestAKeyWithoutAReadyForkIsUnavailable(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*world)
		reason string
	}{
		{"no endpoint is ready", func(w *world) { w.input.Slices[1] = endpoints("route-pr-42") }, "no ready endpoint"},
		{"its endpoint refuses", func(*world) {}, "none of its endpoints can be reached"},
		{"its endpoint has no route", func(w *world) {
			w.unreachable(w.client, "192.0.2.0/24")
			w.input.Slices[1] = endpoints("route-pr-42", netip.MustParseAddr("192.0.2.1"))
		}, "none of its endpoints can be reached"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.names(w.base)
			tc.change(w)
			w.apply()
			c := w.dial(w.client)
			check := func(method string) {
				t.Helper()
				resp, body := c.response(method)
				if resp.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
					t.Fatalf("answered %s %v", resp.Status, resp.Header)
				}
				for _, word := range []string{"shop/pr-42", "shop/route", tc.reason} {
					if method != "HEAD" && !strings.Contains(body, word) {
						t.Errorf("the body %q lacks %q", body, word)
					}
				}
				if strings.Contains(body, key) {
					t.Errorf("the body shows the key: %q", body)
				}
				if method == "HEAD" && resp.ContentLength <= 0 {
					t.Errorf("HEAD has Content-Length %d", resp.ContentLength)
				}
			}
			base := func() {
				t.Helper()
				if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "base" {
					t.Fatalf("an untagged request was answered %s by %q", resp.Status, resp.Header.Get(lab.ServedBy))
				}
			}
			// The connection stays, and the order is kept.
			c.send(get(untagged) + get(tagged) + get(untagged) + "HEAD / HTTP/1.1\r\nHost: a\r\n" + tagged + "\r\n" + get(tagged) + get(untagged))
			base()
			check("GET")
			base()
			check("HEAD")
			check("GET")
			base()
			// A body is not waited for.
			c.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n" + tagged + "\r\n")
			check("POST")
			c.expectFIN()

			// And one that comes all the same does not destroy the answer.
			c = w.dial(w.client)
			go func() {
				_, _ = io.WriteString(c.conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n"+tagged+"\r\n"+strings.Repeat("b", 5_000_000))
				_ = c.conn.CloseWrite()
			}()
			check("POST")
			c.expectFIN()
			w.noConnections()

			c = w.dial(w.client)
			c.send("GET / HTTP/1.0\r\n" + tagged + "\r\n")
			check("GET")
			c.expectFIN()
			rejected := RequestKey{
				Sandbox: routing.Name{Namespace: "shop", Name: "pr-42"}, Service: routing.Name{Namespace: "shop", Name: "route"},
				Verdict: routing.Refuse, Reason: routing.Unavailable,
			}
			if s := w.router.Stats(); s.Requests[rejected] != 6 {
				t.Errorf("counted %+v", s.Requests)
			}
		})
	}
}

func TestTheBaselineAnswersForAnUnavailableForkWhereItsOwnerSaysSo(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*world)
	}{
		{"no endpoint is ready", func(w *world) { w.input.Slices[1] = endpoints("route-pr-42") }},
		{"its endpoint refuses", func(*world) {}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.echo(w.base)
			tc.change(w)
			w.input.Sandboxes[0].Redirects[0].Unavailable = routing.Baseline
			w.apply()
			c := w.dial(w.client)
			raw := "POST / HTTP/1.1\r\nHost: a\r\n" + tagged + "Content-Length: 300000\r\n\r\n" + strings.Repeat("b", 300_000)
			for range 3 {
				c.sendAside(raw)
				if resp, body := c.response("POST"); resp.Header.Get(lab.ServedBy) != "base" || body != raw {
					t.Errorf("answered by %q with %d bytes, want base with %d", resp.Header.Get(lab.ServedBy), len(body), len(raw))
				}
			}
			fallen := RequestKey{
				Sandbox: routing.Name{Namespace: "shop", Name: "pr-42"}, Service: routing.Name{Namespace: "shop", Name: "route"},
				Verdict: routing.ToBaseline, Reason: routing.Unavailable,
			}
			if s := w.router.Stats(); s.Requests[fallen] != 3 || len(s.Requests) != 1 {
				t.Errorf("counted %+v", s.Requests)
			}
		})
	}
}

func TestTheNextEndpointIsTriedWhenOneRefuses(t *testing.T) {
	w := newWorld(t)
	w.names(w.base, w.fork)
	// Nobody listens at the other two.
	w.input.Slices[1] = endpoints("route-pr-42", w.fork2.IPv4, w.fork.IPv4, w.runner.IPv4)
	w.apply()
	for range 12 {
		c := w.dial(w.client)
		c.send(get(tagged))
		if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "fork" {
			t.Fatalf("answered %s by %q", resp.Status, resp.Header.Get(lab.ServedBy))
		}
	}
}

func TestASilentEndpointIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	w := newWorld(t)
	w.names(w.base, w.fork)
	// Nobody has this address: nothing answers, not even a refusal, for a while.
	w.input.Slices[1] = endpoints("route-pr-42", netip.MustParseAddr("10.77.200.200"))
	w.apply()
	c := w.dial(w.client)
	c.send(get(tagged) + get(untagged))
	if resp, _ := c.response("GET"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answered %s", resp.Status)
	}
	if resp, _ := c.response("GET"); resp.Header.Get(lab.ServedBy) != "base" {
		t.Errorf("answered %s", resp.Status)
	}
}

func TestInjectAddsTheKeyToRequestsThatHaveNone(t *testing.T) {
	w := newWorld(t)
	w.echo(w.base, w.fork, w.fork2)
	const start = "GET /a HTTP/1.1\r\nHost: route\r\n"
	for _, tc := range []struct{ name, sent, want, server string }{
		{"no baggage", start + "\r\n", start + "baggage: sidetrack=" + key + "\r\n\r\n", "fork"},
		{"baggage", start + "Baggage: a=b\r\nX: y\r\n\r\n", start + "Baggage: a=b,sidetrack=" + key + "\r\nX: y\r\n\r\n", "fork"},
		{"a key of its own", start + "baggage: sidetrack=" + otherKey + "\r\n\r\n", start + "baggage: sidetrack=" + otherKey + "\r\n\r\n", "fork2"},
		{"a key that nobody has", start + "baggage: sidetrack=nobodys-key\r\n\r\n", start + "baggage: sidetrack=nobodys-key\r\n\r\n", "fork"},
		{
			"a body", "POST /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
			"POST /a HTTP/1.1\r\nContent-Length: 3\r\nbaggage: sidetrack=" + key + "\r\n\r\nabc", "fork",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, step := range []int{1000, 1} {
				c := w.dial(w.runner)
				for range 2 {
					for i := 0; i < len(tc.sent); i += step {
						c.send(tc.sent[i:min(i+step, len(tc.sent))])
					}
					if resp, body := c.response("GET"); body != tc.want || resp.Header.Get(lab.ServedBy) != tc.server {
						t.Errorf("%s received %q, want %s to receive %q", resp.Header.Get(lab.ServedBy), body, tc.server, tc.want)
					}
				}
			}
		})
	}
}

func TestInjectInAPipelineTouchesNothingElse(t *testing.T) {
	w := newWorld(t)
	w.echo(w.base, w.fork)
	one, two := "POST /1 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "GET /2 HTTP/1.1\r\nbaggage: x=y\r\n\r\n"
	want := []string{
		"POST /1 HTTP/1.1\r\nContent-Length: 3\r\nbaggage: sidetrack=" + key + "\r\n\r\nabc",
		"GET /2 HTTP/1.1\r\nbaggage: x=y,sidetrack=" + key + "\r\n\r\n",
	}
	c := w.dial(w.runner)
	c.send(strings.Repeat(one+two, 20))
	for i := range 40 {
		if _, body := c.response("GET"); body != want[i%2] {
			t.Fatalf("request %d arrived as %q, want %q", i, body, want[i%2])
		}
	}
}

func TestWhatIsNotHTTPGoesToTheForkOfAnInjectedPod(t *testing.T) {
	w := newWorld(t)
	for _, p := range w.servers() {
		w.script(p, func(c *peer) {
			c.send("220 " + p.Name + "\r\n")
			_, _ = io.Copy(struct{ io.Writer }{c.conn}, struct{ io.Reader }{c.r})
		})
	}
	c := w.dial(w.runner)
	c.expect("220 fork\r\n")
	c.send("hello\n")
	c.expect("hello\n")
	c = w.dial(w.client)
	c.expect("220 base\r\n")
	route := routing.Name{Namespace: "shop", Name: "route"}
	want := map[RequestKey]uint64{
		{Sandbox: routing.Name{Namespace: "shop", Name: "pr-42"}, Service: route, Verdict: routing.ToFork, Reason: routing.Redirected}: 1,
		{Service: route, Verdict: routing.ToBaseline, Reason: routing.Untagged}:                                                        1,
	}
	if s := w.router.Stats(); !maps.Equal(s.Opaque, want) || len(s.Requests) != 0 {
		t.Errorf("counted connections %+v and requests %+v, want %+v and none", s.Opaque, s.Requests, want)
	}
}

func TestAnInjectedPodWithoutAReadyForkIsRefused(t *testing.T) {
	w := newWorld(t)
	w.mirror("")
	w.input.Slices[1] = endpoints("route-pr-42")
	w.apply()
	w.dial(w.runner).expectRST()
	c := w.dial(w.runner)
	c.send("\x16\x03\x01")
	c.expectRST()
	w.setDelays(func(d *delays) { d.refusal = patience })
	c = w.dial(w.runner)
	c.send(get(""))
	if resp, _ := c.response("GET"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answered %s", resp.Status)
	}
	w.input.Sandboxes[0].Redirects[0].Unavailable = routing.Baseline
	w.apply()
	c = w.dial(w.runner)
	c.send("\x16\x03\x01")
	c.expect("\x16\x03\x01")
}
