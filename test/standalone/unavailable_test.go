// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// unreadyShop has a Service "late" whose fork has no ready endpoint.
func unreadyShop(t *testing.T, fork service, spec ...string) (s *shop, tester *lab.Pod) {
	t.Helper()
	s = newShop(t)
	if err := s.base.AddAddr(netip.MustParseAddr(lateIP)); err != nil {
		t.Fatal(err)
	}
	ports := []port{{name: "http", number: 80, target: 8080}, {name: "raw", number: 70, target: 7070}, {name: "dns", number: 53, target: 5353, protocol: "UDP"}}
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		return errors.Join(p.ServeHTTP(name, ":80", ":8080"), p.ServeTCP(name, ":70", ":7070"), p.ServeUDP(name, ":53", ":5353"))
	})
	fork.name, fork.ports = "late-fork", ports
	put(t, s.dir, "late.yaml", service{name: "late", ips: []string{lateIP}, ports: ports, endpoints: endpointsOf(s.base)}.String(), fork.String())
	if len(spec) == 0 {
		spec = []string{redirects("late", "late-fork")}
	}
	put(t, s.dir, "late-sandbox.yaml", sandbox("late", lateKey, spec...))
	tester = s.MustPod("late-tester")
	put(t, s.dir, "late-pod.yaml", tester.Object("sidetrack.dev/sandbox: late"))
	s.start()
	return s, tester
}

const lateIP, lateKey = "10.96.9.9", "late-key-0123456789"

// refusedFlows wants tagged flows to be refused and never answered.
func refusedFlows(t *testing.T, tester *lab.Pod) {
	t.Helper()
	for _, to := range []string{lateIP + ":80", lateIP + ":70"} {
		conn, err := tester.Dial("tcp", to)
		if err == nil {
			conn.Close()
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("dial %s: %v, want %v", to, err, unix.ECONNREFUSED)
		}
	}
	so := plain4.socket(t, tester, unix.SOCK_DGRAM)
	to := netip.MustParseAddrPort(lateIP + ":53")
	if err := unix.Sendto(so.fd, []byte("hello"), 0, plain4.address(to)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("send a datagram: %v, want %v", err, unix.ECONNREFUSED)
	}
	if err := so.connect(to); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect a datagram socket: %v, want %v", err, unix.ECONNREFUSED)
	}
}

// wantExplained wants a 503 that says whose it is and why.
func wantExplained(t *testing.T, resp *http.Response, words ...string) {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("status %d, %v, %v: %q", resp.StatusCode, resp.Header, err, b)
	}
	for _, w := range append(words, "late", "shop") {
		if !strings.Contains(string(b), w) {
			t.Errorf("the body does not say %q: %q", w, b)
		}
	}
	if strings.Contains(string(b), lateKey) {
		t.Errorf("the body shows the key: %q", b)
	}
}

func TestAKeyWithoutAReadyForkIsRefused(t *testing.T) {
	for name, fork := range map[string]service{
		"no endpoint is ready": {endpoints: []endpoint{{ip: "10.77.0.6", unready: true}, {ip: "fd77::6", unready: true}}},
		"there are none":       {},
	} {
		t.Run(name, func(t *testing.T) {
			s, tester := unreadyShop(t, fork)
			refusedFlows(t, tester)
			conn, err := s.client.Dial("tcp", lateIP+":80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			exchange := func(method, head, body string) *http.Response {
				t.Helper()
				if err := send(conn, method+" / HTTP/1.1\r\nHost: late\r\n"+head+"\r\n"+body, false); err != nil {
					t.Fatal(err)
				}
				_ = conn.SetReadDeadline(time.Now().Add(patience))
				resp, err := http.ReadResponse(r, &http.Request{Method: method})
				if err != nil {
					t.Fatalf("%s: %v", method, err)
				}
				return resp
			}
			tagged := "x-sidetrack-key: " + lateKey + "\r\n"
			untagged := func() {
				t.Helper()
				resp := exchange("GET", "", "")
				defer resp.Body.Close()
				if seen, err := lab.ReadSeen(resp); err != nil || seen.Server != "baseline" {
					t.Errorf("the untagged request: %+v, %v", seen, err)
				}
			}
			untagged()
			wantExplained(t, exchange("GET", tagged, ""), "endpoint", "late-fork")
			untagged()
			if resp := exchange("HEAD", tagged, ""); resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("HEAD: status %d", resp.StatusCode)
			}
			untagged()
			resp := exchange("POST", tagged+"Content-Length: 5\r\n", "hello")
			wantExplained(t, resp)
			if !resp.Close {
				untagged()
			}
		})
	}
	t.Run("a fork that comes and goes", func(t *testing.T) {
		s, tester := unreadyShop(t, service{})
		ports := []port{{name: "http", number: 80, target: 8080}, {name: "raw", number: 70, target: 7070}, {name: "dns", number: 53, target: 5353, protocol: "UDP"}}
		late := service{name: "late", ips: []string{lateIP}, ports: ports, endpoints: endpointsOf(s.base)}
		reach := func(want string) {
			t.Helper()
			eventually(t, func() error {
				got, err := tester.Ask("tcp", lateIP+":70")
				if want == "" && errors.Is(err, unix.ECONNREFUSED) {
					return nil
				}
				return errors.Join(err, expect("server", got, want))
			})
		}
		for range 3 {
			put(t, s.dir, "late.yaml", late.String(), service{name: "late-fork", ports: ports, endpoints: endpointsOf(s.forkA)}.String())
			reach("fork-a")
			put(t, s.dir, "late.yaml", late.String(), service{name: "late-fork", ports: ports, endpoints: []endpoint{{ip: s.forkA.IPv4.String(), unready: true}}}.String())
			reach("")
		}
		put(t, s.dir, "late.yaml", late.String())
		reach("")
		resp := taggedResponse(t, s)
		wantExplained(t, resp, "late-fork")
	})
	t.Run("an endpoint that refuses", func(t *testing.T) {
		s, tester := unreadyShop(t, service{endpoints: []endpoint{{ip: "10.77.200.200"}}})
		// Nobody has this address; the pods' link says so after a while. One that
		// refuses at once:
		dead := s.MustPod("dead")
		put(t, s.dir, "late-sandbox.yaml", sandbox("late", lateKey, fmt.Sprintf("redirects: [{from: {service: late}, to: {address: %q}}]", dead.IPv4)))
		eventually(t, func() error {
			resp := taggedResponse(t, s)
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			if err != nil || !strings.Contains(string(b), dead.IPv4.String()) {
				return fmt.Errorf("the answer is %q, %w", b, err)
			}
			return nil
		})
		wantExplained(t, taggedResponse(t, s), dead.IPv4.String(), "reached")
		if _, err := tester.Dial("tcp", lateIP+":70"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("the flow: %v", err)
		}
	})
	t.Run("one of two endpoints refuses", func(t *testing.T) {
		s, _ := unreadyShop(t, service{endpoints: []endpoint{{ip: "10.77.0.6"}, {ip: "10.77.0.4"}}}) // fork-a and a tester
		for i := range 30 {
			resp := taggedResponse(t, s)
			seen, err := lab.ReadSeen(resp)
			resp.Body.Close()
			if err != nil || seen.Server != "fork-a" {
				t.Fatalf("request %d: %+v, %v", i, seen, err)
			}
		}
	})
}

// taggedResponse sends one tagged request over a new connection.
func taggedResponse(t *testing.T, s *shop) *http.Response {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+lateIP+"/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Sidetrack-Key", lateKey)
	client := &http.Client{Transport: &http.Transport{DialContext: s.client.DialContext, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

func TestUnavailableBaselineOptsOut(t *testing.T) {
	spec := "redirects: [{from: {service: late}, to: {service: late-fork}, unavailable: Baseline}]"
	for name, fork := range map[string]service{
		"no endpoint is ready": {endpoints: []endpoint{{ip: "10.77.0.6", unready: true}}},
		"there are none":       {},
	} {
		t.Run(name, func(t *testing.T) {
			s, tester := unreadyShop(t, fork, spec)
			tester.MustReach("tcp", lateIP+":70", "baseline")
			tester.MustReach("udp", lateIP+":53", "baseline")
			if got := s.client.MustGet("http://"+lateIP+"/", "x-sidetrack-key: "+lateKey); got.Server != "baseline" {
				t.Errorf("%+v answered, want the baseline", got)
			}
		})
	}
	t.Run("an endpoint that refuses", func(t *testing.T) {
		s, _ := unreadyShop(t, service{endpoints: []endpoint{{ip: "10.77.0.1"}}}, spec) // the client's own
		for _, body := range []string{"", "hello"} {
			e := &ends{}
			conn, err := s.client.Dial("tcp", lateIP+":80")
			if err != nil {
				t.Fatal(err)
			}
			e.client = conn
			if err := send(conn, fmt.Sprintf("POST / HTTP/1.1\r\nHost: w\r\nX-Sidetrack-Key: %s\r\nContent-Length: %d\r\n\r\n%s", lateKey, len(body), body), false); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			seen, err := lab.ReadSeen(resp)
			if err != nil || seen.Server != "baseline" || seen.Body != len(body) {
				t.Errorf("%+v, %v", seen, err)
			}
			conn.Close()
		}
	})
}

// TestFamiliesThatTheForkDoesNotHave: a flow never falls back to the baseline,
// and the router dials whichever family there is.
func TestFamiliesThatTheForkDoesNotHave(t *testing.T) {
	for _, tt := range []struct {
		name string
		fork func(s *shop) []endpoint
		want map[string]string // server by socket kind; empty: refused
	}{
		{"IPv4 only", func(s *shop) []endpoint { return []endpoint{{ip: s.forkA.IPv4.String()}} },
			map[string]string{plain4.name: "fork-a", mapped46.name: "fork-a", dual6.name: "fork-a", only6.name: ""}},
		{"IPv6 only", func(s *shop) []endpoint { return []endpoint{{ip: s.forkA.IPv6.String()}} },
			map[string]string{plain4.name: "", mapped46.name: "", dual6.name: "fork-a", only6.name: "fork-a"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newShop(t)
			ports := []port{{name: "raw", number: 7070}, {name: "http", number: 8080}}
			s.serveEverywhere(func(name string, p *lab.Pod) error {
				return errors.Join(p.ServeTCP(name, ":7070"), p.ServeHTTP(name, ":8080"))
			})
			put(t, s.dir, "family.yaml", service{name: "family", ports: ports, endpoints: endpointsOf(s.base)}.String(),
				service{name: "family-a", ports: ports, endpoints: tt.fork(s)}.String(), sandbox("family", "family-key-012345", redirects("family", "family-a")))
			tester := s.MustPod("family-tester")
			put(t, s.dir, "family-pod.yaml", tester.Object("sidetrack.dev/sandbox: family"))
			s.start()
			for _, a := range []netip.Addr{s.base.IPv4, s.base.IPv6} {
				for _, k := range kindsFor(a) {
					so := k.socket(t, tester, unix.SOCK_STREAM)
					err := so.connect(netip.AddrPortFrom(a, 7070))
					line := ""
					if err == nil {
						line, _, err = so.receive()
					}
					if line != tt.want[k.name] || (err == nil) != (line != "") {
						t.Errorf("%s to %s: %q, %v; want %q", k.name, a, line, err, tt.want[k.name])
					}
				}
				got := s.client.MustGet("http://"+lab.HostPort(a, 8080)+"/", "x-sidetrack-key: family-key-012345")
				if got.Server != "fork-a" {
					t.Errorf("tagged request to %s: %s answered", a, got.Server)
				}
			}
		})
	}
}
