// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// TestWhereAKeyIsFoundAndWhereNot asks with curl, whose headers come as they
// are written.
func TestWhereAKeyIsFoundAndWhereNot(t *testing.T) {
	programs.Need(t, "curl")
	s := newShop(t)
	s.serveSeen()
	s.start()
	long := strings.Repeat("x", 65)
	for _, tt := range []struct {
		name, want string
		headers    []string
	}{
		{"nowhere", "baseline", nil},
		{"the plain header", "fork-a", []string{"x-sidetrack-key: " + keyA}},
		{"the plain header in other letters", "fork-a", []string{"X-SideTrack-KEY:" + keyA}},
		{"the plain header with blanks around it", "fork-a", []string{"x-sidetrack-key: \t" + keyA + " \t"}},
		{"the plain header twice, the first is nobody's", "fork-a", []string{"x-sidetrack-key: nobody-has-this", "x-sidetrack-key: " + keyA}},
		{"another header", "baseline", []string{"x-sidetrack-key2: " + keyA, "x-sidetrack: " + keyA, "sidetrack: " + keyA}},
		{"baggage", "fork-a", []string{"baggage: sidetrack=" + keyA}},
		{"baggage, the other name", "fork-b", []string{"baggage: sd-routing-key=" + keyB}},
		{"baggage among others, with properties", "fork-a", []string{"baggage: a=1;p, b = 2 , sidetrack = " + keyA + " ;q=sidetrack=" + keyB + ", c=3"}},
		{"baggage in several headers", "fork-a", []string{"baggage: a=1", "Baggage: sidetrack=" + keyA, "BAGGAGE: b=2"}},
		{"baggage, percent-encoded", "fork-a", []string{"baggage: sidetrack=" + "%61%2D" + keyA[2:]}},
		{"baggage, the name in other letters", "baseline", []string{"baggage: SideTrack=" + keyA}},
		{"baggage, a name that ends alike", "baseline", []string{"baggage: my-sidetrack=" + keyA + ",sidetrack2=" + keyA}},
		{"baggage, in a property only", "baseline", []string{"baggage: a=1;sidetrack=" + keyA}},
		{"tracestate", "fork-a", []string{"tracestate: congo=t61rcWkgMzE,sidetrack=" + keyA + ",rojo=00f0"}},
		{"tracestate is not percent-encoded", "baseline", []string{"tracestate: sidetrack=%61" + keyA[1:]}},
		{"traceparent", "baseline", []string{"traceparent: " + keyA}},
		{"baggage before tracestate", "fork-a", []string{"tracestate: sidetrack=" + keyB, "baggage: sidetrack=" + keyA}},
		{"tracestate before the plain header", "fork-b", []string{"x-sidetrack-key: " + keyA, "tracestate: sidetrack=" + keyB}},
		{"nobody's in baggage, somebody's behind", "fork-b", []string{"baggage: sidetrack=nobody-has-this", "x-sidetrack-key: " + keyB}},
		{"too short, too long, other letters", "baseline", []string{"x-sidetrack-key: abc", "baggage: sidetrack=" + long, "tracestate: sidetrack=a/b/c/d/e/f"}},
		{"the beginning of a key, and more than a key", "baseline", []string{"x-sidetrack-key: " + keyA[:len(keyA)-1], "baggage: sidetrack=" + keyA + "0"}},
		{"a key in other letters", "baseline", []string{"x-sidetrack-key: " + strings.ToUpper(keyA)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := []string{"-q", "-sS", "-o", "/dev/null", "-w", "%header{x-served-by}", "http://" + webIP + "/"}
			for _, h := range tt.headers {
				args = append(args, "-H", h)
			}
			out, err := s.client.Command("curl", args...).CombinedOutput()
			if err != nil || string(out) != tt.want {
				t.Errorf("%v: %s answered, want %s", err, out, tt.want)
			}
		})
	}
	t.Run("neither in a path nor in a body nor in a trailer", func(t *testing.T) {
		got := s.client.MustGet("http://" + webIP + "/x-sidetrack-key:" + keyA + "?sidetrack=" + keyA)
		if got.Server != "baseline" {
			t.Errorf("%s answered", got.Server)
		}
		e, strangers := s.open(t, way{"", s.client, s.base, "", wideIP})
		d := dialogue{steps: []step{c("POST / HTTP/1.1\r\nHost: w\r\nTrailer: X-Sidetrack-Key\r\nTransfer-Encoding: chunked\r\n\r\n" +
			"5\r\nhello\r\n0\r\nX-Sidetrack-Key: " + keyA + "\r\n\r\n"), sv(ok), c("GET / HTTP/1.1\r\nHost: w\r\n\r\n"), sv(ok)}}
		if err := errors.Join(d.play(e, ""), strangers()); err != nil {
			t.Error(err)
		}
	})
}

// TestNamesOfKeysAreFlags.
func TestNamesOfKeysAreFlags(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	s.start("--baggage-member=tenant,squad", "--key-header=X-Route-To")
	for _, tt := range []struct{ header, want string }{
		{"baggage: tenant=" + keyA, "fork-a"},
		{"tracestate: squad=" + keyB, "fork-b"},
		{"x-route-to: " + keyB, "fork-b"},
		{"baggage: sidetrack=" + keyA, "baseline"},
		{"x-sidetrack-key: " + keyA, "baseline"},
	} {
		if got := s.client.MustGet("http://"+webIP+"/", tt.header); got.Server != tt.want {
			t.Errorf("%s: %s answered, want %s", tt.header, got.Server, tt.want)
		}
	}
	if got := s.runner.MustGet("http://" + webIP + "/"); got.Server != "fork-a" || got.Header.Get("Baggage") != "tenant="+keyA {
		t.Errorf("from the pod with inject: %s saw baggage %q", got.Server, got.Header["Baggage"])
	}
	for _, flag := range []string{"--key-header=not a token", "--baggage-member="} {
		if out, err := once(t, "run", "--manifests", s.dir, "--bpffs", s.BPFFS, "--cgroup", s.Cgroup, "--metrics-address", freePort(t), flag); err == nil || !strings.Contains(out, "name") {
			t.Errorf("%s: %v: %s", flag, err, out)
		}
	}
}

// TestKeysAreCountedAndNeverShown: metrics tell sandboxes and Services apart and
// know what was unknown; neither they nor the log contain a key.
func TestKeysAreCountedAndNeverShown(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	n := s.nextPort()
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeTCP(name, fmt.Sprintf(":%d", n)) })
	a := s.start("--log-level=debug")
	before := a.scrape()
	const requests = "sidetrack_requests_total"
	get := func(headers ...string) { s.client.MustGet("http://"+webIP+"/?secret="+keyA, headers...) }
	for range 3 {
		get("x-sidetrack-key: " + keyA)
	}
	get("x-sidetrack-key: " + keyB)
	get("x-sidetrack-key: " + keyB)
	for i := range 50 {
		get(fmt.Sprintf("x-sidetrack-key: unknown-key-number-%d", i))
	}
	get()
	for range 5 {
		s.tester.MustReach("tcp", fmt.Sprintf("%s:%d", wideIP, n), "fork-a")
	}
	if err := s.refused(t, "GET / HTTP/1.1\r\nX-Sidetrack-Key : "+keyA+"\r\n\r\n"); err != nil {
		t.Error(err)
	}
	eventually(t, func() error {
		after := a.scrape()
		delta := func(name string, labels ...string) float64 {
			return after.sum(name, labels...) - before.sum(name, labels...)
		}
		return errors.Join(
			expect("requests of a to web's fork", delta(requests, `namespace="shop"`, `sandbox="a"`, `service="web"`, `verdict="fork"`), 3),
			expect("requests of b to web's fork", delta(requests, `sandbox="b"`, `service="web"`, `verdict="fork"`), 2),
			expect("unknown keys", delta(requests, `reason="unknown_key"`), 50),
			expect("untagged requests", delta(requests, `reason="untagged"`), 1),
			expect("flows", delta("sidetrack_flows_total", `sandbox="a"`, `service="wide"`, `verdict="fork"`), 5),
		)
	})
	_, metrics, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"/metrics": metrics, "the log": a.log.String()} {
		for _, secret := range []string{keyA, keyB, "unknown-key-number"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows a key", what)
			}
		}
	}
	if grown := len(a.scrape()) - len(before); grown > 60 {
		t.Errorf("/metrics has grown by %d lines: labels are not bounded", grown)
	}
}

// TestMetricsSayWhatTheyAreMeantTo: each name in the contract's list has one.
func TestMetricsSayWhatTheyAreMeantTo(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	put(t, s.dir, "gone.yaml", strings.NewReplacer("name: client", "name: gone", "netns: ", "netns: not-there-").Replace(s.client.Object()))
	a := s.start()
	s.client.MustGet("http://"+webIP+"/", "x-sidetrack-key: "+keyA)
	s.tester.MustGet("http://" + webIP + "/")
	all := a.scrape()
	for _, name := range []string{
		"sidetrack_flows_total", "sidetrack_requests_total", "sidetrack_program_exits_total", "sidetrack_generation",
		"sidetrack_apply_duration_seconds_count", "sidetrack_coverage_gaps", "sidetrack_problems", "sidetrack_ready",
		"sidetrack_router_connections", "sidetrack_router_bytes_total",
	} {
		if !all.has(name) {
			t.Errorf("/metrics has no %s", name)
		}
	}
	if gaps := all.sum("sidetrack_coverage_gaps", `kind="pod_without_namespace"`); gaps != 1 {
		t.Errorf("%v pods without a namespace, want 1", gaps)
	}
	generation := all.sum("sidetrack_generation")
	drop(t, s.dir, "sandbox-b.yaml")
	eventually(t, func() error {
		if now := a.scrape().sum("sidetrack_generation"); now <= generation {
			return fmt.Errorf("generation %v after %v", now, generation)
		}
		return nil
	})
}
