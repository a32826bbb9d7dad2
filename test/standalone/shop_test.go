// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// The routing keys of the two sandboxes that nearly all tests have.
const (
	keyA = "a-52f7c1e09b6d4e3f8a71c2d3e4f50617"
	keyB = "b-0c9e8d7f6a5b4c3d2e1f00112233445566778899"
)

// The fixed addresses of the shop's Services. Without a service proxy a
// ClusterIP is an address of the pod behind it.
const (
	webIP, webIP6     = "10.96.0.10", "fd96::10"
	plainIP, plainIP6 = "10.96.0.20", "fd96::20"
	wideIP, wideIP6   = "10.96.0.30", "fd96::30"
	dnsIP, dnsIP6     = "10.96.0.40", "fd96::40"
)

// The ports of the Services called wide: a test or a part of one takes a port
// of its own by nextPort, and nobody else's connections get in its way.
const widePorts, wideFirst = 400, 2000

// shop is a world in which everything has its place: a baseline, the forks of
// two sandboxes, a client that belongs to nobody, one pod of sandbox a with
// injection and one without.
type shop struct {
	*lab.World
	t     *testing.T
	dir   string // of manifests
	agent *agent // nil: Sidetrack has never been here

	client, tester, runner, testerB *lab.Pod
	base, forkA, forkB              *lab.Pod

	wide atomic.Int32

	// Of agents that take turns.
	run     string // the folder of their sockets
	metrics string
	turns   int
}

// newShop builds the world and its manifests. No server runs, and no agent.
func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{World: lab.New(t), t: t, dir: t.TempDir()}
	s.MustMoveSelf()
	s.client, s.tester, s.runner, s.testerB = s.MustPod("client"), s.MustPod("tester"), s.MustPod("runner"), s.MustPod("tester-b")
	s.base = s.MustPod("base", webIP, webIP6, plainIP, plainIP6, wideIP, wideIP6, dnsIP, dnsIP6)
	s.forkA = s.MustPod("fork-a", "10.96.0.11", "fd96::11")
	s.forkB = s.MustPod("fork-b", "10.96.0.12", "fd96::12")
	s.putPods()
	s.putServices()
	s.putSandbox("a", keyA)
	s.putSandbox("b", keyB)
	return s
}

func (s *shop) putPods() {
	put(s.t, s.dir, "client.yaml", s.client.Object())
	put(s.t, s.dir, "pods.yaml", s.base.Object(),
		s.tester.Object("sidetrack.dev/sandbox: a"),
		s.testerB.Object("sidetrack.dev/sandbox: b"),
		s.runner.Object("sidetrack.dev/sandbox: a", `sidetrack.dev/inject: "true"`),
		s.forkA.Object(), s.forkB.Object())
}

// redirected are the Services that both sandboxes redirect to their forks.
var redirected = []string{"web", "nginx", "python", "wide", "dns"}

func (s *shop) putServices() {
	var docs []string
	for _, side := range []struct {
		suffix string
		pod    *lab.Pod
	}{{"", s.base}, {"-a", s.forkA}, {"-b", s.forkB}} {
		ips := func(base ...string) []string {
			if side.suffix == "" {
				return base
			}
			return nil
		}
		wide := service{name: "wide" + side.suffix, ips: ips(wideIP, wideIP6), endpoints: endpointsOf(side.pod)}
		for i := range widePorts {
			wide.ports = append(wide.ports, port{name: fmt.Sprintf("p%d", i), number: wideFirst + i})
		}
		for _, svc := range []service{
			{name: "web", ips: ips(webIP, webIP6), ports: []port{{name: "http", number: 80, target: 8080}}},
			{name: "nginx", ips: ips("10.96.0.52", "fd96::52"), ports: []port{{name: "http", number: 82, target: 8082}}},
			{name: "python", ips: ips("10.96.0.53", "fd96::53"), ports: []port{{name: "http", number: 83, target: 8083}}},
			{name: "dns", ips: ips(dnsIP, dnsIP6), ports: []port{{name: "dns", number: 53, target: 5353, protocol: "UDP"}}},
		} {
			svc.name += side.suffix
			svc.endpoints = endpointsOf(side.pod)
			docs = append(docs, svc.String())
		}
		docs = append(docs, wide.String())
	}
	docs = append(docs, service{name: "plain", ips: []string{plainIP, plainIP6},
		ports: []port{{name: "http", number: 81, target: 8081}}, endpoints: endpointsOf(s.base)}.String())
	for _, a := range []string{"10.96.0.52", "fd96::52", "10.96.0.53", "fd96::53"} {
		if err := s.base.AddAddr(netip.MustParseAddr(a)); err != nil {
			s.t.Fatal(err)
		}
	}
	put(s.t, s.dir, "services.yaml", docs...)
}

// putSandbox writes a sandbox that redirects everything to its forks.
func (s *shop) putSandbox(name, key string, spec ...string) {
	s.t.Helper()
	var pairs []string
	for _, r := range redirected {
		pairs = append(pairs, r, r+"-"+name)
	}
	put(s.t, s.dir, "sandbox-"+name+".yaml", sandbox(name, key, append([]string{redirects(pairs...)}, spec...)...))
}

// start starts the agent and waits until it is ready.
func (s *shop) start(extra ...string) *agent {
	s.t.Helper()
	s.agent = launch(s.t, s.World, s.dir, extra...)
	s.agent.ready()
	return s.agent
}

// both runs a scenario in two worlds: without the agent, where every server is
// the baseline's, and with it.
func both(t *testing.T, scenario func(t *testing.T, s *shop)) {
	t.Helper()
	t.Run("without the agent", func(t *testing.T) {
		scenario(t, newShop(t))
	})
	t.Run("with the agent", func(t *testing.T) {
		s := newShop(t)
		s.start()
		scenario(t, s)
	})
}

// want is the server that answers what is tagged for the given one.
func (s *shop) want(server string) string {
	if s.agent == nil {
		return "baseline"
	}
	return server
}

// nextPort takes an unused port of the Services called wide.
func (s *shop) nextPort() int {
	n := int(s.wide.Add(1)) - 1
	if n >= widePorts {
		s.t.Fatalf("a test wants more than %d ports", widePorts)
	}
	return wideFirst + n
}

// places are the three pods that serve, by the names that their servers have.
func (s *shop) places() map[string]*lab.Pod {
	return map[string]*lab.Pod{"baseline": s.base, "fork-a": s.forkA, "fork-b": s.forkB}
}

// serveEverywhere calls serve for the baseline and each fork.
func (s *shop) serveEverywhere(serve func(name string, p *lab.Pod) error) {
	s.t.Helper()
	for name, p := range s.places() {
		if err := serve(name, p); err != nil {
			s.t.Fatal(err)
		}
	}
}

// serveSeen starts servers on the Service web that say what they have seen.
func (s *shop) serveSeen() {
	s.t.Helper()
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeHTTP(name, ":80", ":8080", ":8081", ":81") })
}

// serveEcho starts servers on the Service web that answer as echo does.
func (s *shop) serveEcho() *echoCount {
	s.t.Helper()
	n := &echoCount{}
	s.serveEverywhere(func(name string, p *lab.Pod) error { return p.ServeHandler(n.echo(name), ":80", ":8080") })
	return n
}

// echoCount is what the servers of one shop have seen together.
type echoCount struct{ requests, misrouted atomic.Int64 }

// echo answers with its own name beside the name that the client wanted, with
// hash and length of the request's body, and with as large a body as it is
// asked for, when it is asked for: ?size=1000&mode=chunked&wait=1s.
func (n *echoCount) echo(name string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		got, err := io.Copy(sum, r.Body)
		if err != nil {
			return
		}
		n.requests.Add(1)
		h := rw.Header()
		if want := r.Header.Get("X-Expect"); want != "" {
			h.Set("X-Expect", want)
			if want != name {
				n.misrouted.Add(1)
			}
		}
		h.Set(lab.ServedBy, name)
		h.Set("X-Number", r.Header.Get("X-Number"))
		h.Set("X-Remote", r.RemoteAddr)
		h.Set("X-Length", strconv.FormatInt(got, 10))
		h.Set("X-Sha256", hex.EncodeToString(sum.Sum(nil)))
		q := r.URL.Query()
		size, _ := strconv.ParseInt(q.Get("size"), 10, 64) // absent is zero
		wait, _ := time.ParseDuration(q.Get("wait"))       // the same
		time.Sleep(wait)
		switch q.Get("status") {
		case "204":
			rw.WriteHeader(http.StatusNoContent)
			return
		case "304":
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		if q.Get("mode") != "chunked" {
			h.Set("Content-Length", strconv.FormatInt(size, 10))
		}
		h.Set("Content-Type", "application/octet-stream")
		rw.WriteHeader(http.StatusOK)
		if r.Method == http.MethodHead {
			return
		}
		if f, ok := rw.(http.Flusher); ok && q.Get("mode") == "chunked" {
			f.Flush()
		}
		_, _ = io.Copy(rw, noise(size, size)) // the client may have gone
	})
}

// noise is size bytes that look random and depend on seed only.
func noise(seed, size int64) io.Reader {
	var key [32]byte
	copy(key[:], strconv.FormatInt(seed, 10))
	return io.LimitReader(rand.NewChaCha8(key), size)
}

func hashOf(r io.Reader) string {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return err.Error()
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// rawServer accepts connections in a pod and hands them over.
func rawServer(t *testing.T, p *lab.Pod, port int) <-chan net.Conn {
	t.Helper()
	l, err := p.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 64)
	t.Cleanup(func() {
		l.Close()
		for c := range conns {
			c.Close()
		}
	})
	go func() {
		defer close(conns)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	return conns
}

// file writes a file that a program in the world reads.
func (s *shop) file(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.Dir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}
