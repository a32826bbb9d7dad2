// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// The Service that everything is sent to. Its address is the baseline's pod's.
const serviceIP = "10.96.0.10"

// The Service has these ports, and its endpoints the same ones.
const firstPort, lastPort = 20000, 20299

// Programs that let the kernel choose their ports get some of these; world.port
// gives out what is below.
var basePorts, forkPorts = [2]int{20100, 20199}, [2]int{20200, 20299}

// The sandboxes' keys: each has a fork.
var keys = map[string]string{
	"a": "a-52f7c1e09b6d4e3f8a71c2d3e4f50617",
	"b": "b-0c9e8d7f6a5b4c3d2e1f00112233445566778899",
	"c": "c-7d1b3f9a5c8e4d2fb60718293a4b5c6d",
}

// goneKey is the key of the sandbox "gone", whose fork is not ready.
const goneKey = "gone-1f2e3d4c5b6a79880011223344556677"

// keyHeader carries a key; it is a gRPC metadata name as well.
const keyHeader = "x-sidetrack-key"

// world is a client's pods, a baseline, three forks and the agent.
type world struct {
	*lab.World
	t   *testing.T
	dir string // of manifests

	// stranger is a pod that Sidetrack knows nothing of. client is an ordinary one.
	// runner belongs to sandbox a, and its requests get the key.
	stranger, client, runner *lab.Pod
	base                     *lab.Pod
	forks                    map[string]*lab.Pod // by sandbox

	agent    *exec.Cmd
	log      *transcript.Log
	metrics  string
	nextPort int
}

// way is how a client reaches the Service.
type way int

const (
	// direct: from a pod that is not captured, to the baseline.
	direct way = iota
	// untagged: through the router, to the baseline.
	untagged
	// tagged: through the router by a key in a header, to the fork of sandbox a.
	tagged
	// relayed: as direct, through an ordinary relay of bytes in the same pod. It
	// changes nothing but when and in which pieces they come.
	relayed
	// broken: as relayed, with frames that are not as they were.
	broken
	// injected: through the router by the key that it adds to the requests of a
	// sandbox's pod, to the fork of sandbox a.
	injected
)

func (w way) String() string {
	return [...]string{"directly", "through the router, untagged", "through the router, tagged", "through a relay of bytes", "through a broken proxy", "through the router, injected"}[w]
}

// from is the pod that a way starts in.
func (w *world) from(v way) *lab.Pod {
	switch v {
	case direct, relayed, broken:
		return w.stranger
	case injected:
		return w.runner
	}
	return w.client
}

// to is the pod where a way has to end.
func (w *world) to(v way) *lab.Pod {
	if v == tagged || v == injected {
		return w.forks["a"]
	}
	return w.base
}

// host is the address that a client dials.
func (w *world) host(v way) string {
	switch v {
	case relayed:
		return "127.0.0.1"
	case broken:
		return "127.0.0.2"
	}
	return serviceIP
}

// relay makes a port of the way relayed lead where the way direct does.
func (w *world) relay(t *testing.T, port int) {
	t.Helper()
	w.relayBy(t, relayed, port, pieces)
}

// pieces copies bytes, now and then late and in two pieces: whatever can happen to
// them on a real way.
func pieces(to, from net.Conn) error {
	b := make([]byte, 16<<10)
	for {
		n, err := from.Read(b)
		for _, part := range [2][]byte{b[:n/2], b[n/2 : n]} {
			if rand.IntN(2) == 0 {
				time.Sleep(rand.N(3 * time.Millisecond))
			}
			if _, err := to.Write(part); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// relayBy is relay with a function that copies what the server sends.
func (w *world) relayBy(t *testing.T, v way, port int, answers func(to, from net.Conn) error) {
	t.Helper()
	err := w.stranger.ServeConns(func(c net.Conn) {
		defer c.Close()
		s, err := w.stranger.Dial("tcp", fmt.Sprintf("%s:%d", serviceIP, port))
		if err != nil {
			return
		}
		defer s.Close()
		var wg sync.WaitGroup
		// Whatever ends a direction, the other one goes on.
		wg.Go(func() {
			_ = pieces(s, c)
			_ = s.(*net.TCPConn).CloseWrite()
		})
		wg.Go(func() {
			_ = answers(c, s)
			_ = c.(*net.TCPConn).CloseWrite()
		})
		wg.Wait()
	}, fmt.Sprintf("%s:%d", w.host(v), port))
	if err != nil {
		t.Fatal(err)
	}
}

// spoil copies frames. Answers to pings get lost, and streams are reset with
// another code.
func spoil(to, from net.Conn) error {
	r, w := http2.NewFramer(io.Discard, from), http2.NewFramer(to, nil)
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			continue
		case *http2.RSTStreamFrame:
			if err := w.WriteRSTStream(f.StreamID, http2.ErrCodeNo); err != nil {
				return err
			}
			continue
		case *http2.SettingsFrame:
			var all []http2.Setting
			if err := f.ForeachSetting(func(s http2.Setting) error { all = append(all, s); return nil }); err != nil {
				return err
			}
			err = w.WriteSettings(all...)
			if f.IsAck() {
				err = w.WriteSettingsAck()
			}
			if err != nil {
				return err
			}
			continue
		}
		h := f.Header()
		payload, err := payloadOf(f)
		if err != nil {
			return err
		}
		if err := w.WriteRawFrame(h.Type, h.Flags, h.StreamID, payload); err != nil {
			return err
		}
	}
}

func payloadOf(f http2.Frame) ([]byte, error) {
	switch f := f.(type) {
	case *http2.DataFrame:
		return f.Data(), nil
	case *http2.HeadersFrame:
		return f.HeaderBlockFragment(), nil
	case *http2.ContinuationFrame:
		return f.HeaderBlockFragment(), nil
	case *http2.WindowUpdateFrame:
		return binary.BigEndian.AppendUint32(nil, f.Increment), nil
	case *http2.GoAwayFrame:
		b := binary.BigEndian.AppendUint32(nil, f.LastStreamID)
		return append(binary.BigEndian.AppendUint32(b, uint32(f.ErrCode)), f.DebugData()...), nil
	}
	return nil, fmt.Errorf("a frame %s", f.Header())
}

// key is what the client itself has to send on a way; empty: nothing.
func (w *world) key(v way) string {
	if v == tagged {
		return keys["a"]
	}
	return ""
}

// newWorld builds the world and starts the agent.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{World: lab.New(t), t: t, dir: t.TempDir(), forks: map[string]*lab.Pod{}, log: &transcript.Log{}, nextPort: firstPort}
	w.MustMoveSelf()
	w.stranger, w.client, w.runner = w.MustPod("stranger"), w.MustPod("client"), w.MustPod("runner")
	w.base = w.MustPod("base", serviceIP)
	docs := []string{w.client.Object(), w.base.Object(),
		w.runner.Object("sidetrack.dev/sandbox: a", `sidetrack.dev/inject: "true"`),
		service("web", serviceIP, w.base, true),
		service("web-gone", "None", w.base, false), sandbox("gone", goneKey, "web", "web-gone")}
	ports(t, w.base, basePorts)
	for name, key := range keys {
		fork := w.MustPod("fork-" + name)
		ports(t, fork, forkPorts)
		w.forks[name] = fork
		docs = append(docs, fork.Object(), service("web-"+name, "None", fork, true), sandbox(name, key, "web", "web-"+name))
	}
	if err := os.WriteFile(filepath.Join(w.dir, "all.yaml"), []byte(strings.Join(docs, "---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	w.startAgent()
	return w
}

// ports makes the kernel choose these ports for whoever asks for none.
func ports(t *testing.T, p *lab.Pod, which [2]int) {
	t.Helper()
	err := p.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "%d %d", which[0], which[1]), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// decoy answers on ports of the baseline whose servers are a fork's. HTTP/2
// clients hear from the baseline first, before they have said where they want to
// go. Nothing else may come here: the test fails when a request does.
func (w *world) decoy(t *testing.T, ports ...int) {
	t.Helper()
	s := &http.Server{Protocols: new(http.Protocols), ErrorLog: quiet}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	var astray atomic.Int64
	s.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if astray.Add(1) == 1 {
			t.Errorf("a tagged request has reached the baseline: %s %s %s", r.Proto, r.Method, r.URL)
		}
		rw.WriteHeader(http.StatusTeapot)
	})
	for _, port := range ports {
		l, err := w.base.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			// Serve always ends in an error: Close's.
			_ = s.Serve(l)
		}()
	}
	t.Cleanup(func() { s.Close() })
}

// every lists a range of ports.
func every(which [2]int) (all []int) {
	for n := which[0]; n <= which[1]; n++ {
		all = append(all, n)
	}
	return all
}

// port takes a port of the Service that nobody has used in this world.
func (w *world) port() int {
	w.nextPort++
	if w.nextPort >= basePorts[0] {
		w.t.Fatal("a test wants more ports than the Service has")
	}
	return w.nextPort
}

func (w *world) startAgent() {
	w.t.Helper()
	path, err := build()
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.metrics = l.Addr().String()
	l.Close()
	group, err := w.Subgroup("agent")
	if err != nil {
		w.t.Fatal(err)
	}
	dir, err := os.Open(group)
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	w.agent = exec.Command(path, "run", "--manifests", w.dir, "--cgroup", w.Cgroup, "--bpffs", w.BPFFS, "--metrics-address", w.metrics)
	w.agent.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	w.agent.Stdout, w.agent.Stderr = w.log, w.log
	ended := start(w.t, w.agent)
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("end of the agent's log:\n%s", w.log.Tail(30))
		}
	})
	eventually(w.t, 30*time.Second, func() error {
		select {
		case <-ended:
			w.t.Fatalf("sidetrackd ended before it was ready:\n%s", w.log.Tail(30))
		default:
		}
		status, _, err := w.scrape("/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("/readyz: status %d", status)
		}
		return err
	})
}

// scrape fetches from the agent's metrics address.
func (w *world) scrape(path string) (int, string, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := c.Get("http://" + w.metrics + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// metric adds up the samples of a metric whose labels contain all of labels.
func (w *world) metric(name string, labels ...string) float64 {
	w.t.Helper()
	_, text, err := w.scrape("/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	sum := 0.0
lines:
	for line := range strings.Lines(text) {
		sample, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if sample != name && !strings.HasPrefix(sample, name+"{") {
			continue
		}
		for _, l := range labels {
			if !strings.Contains(sample, l) {
				continue lines
			}
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			w.t.Fatalf("metrics: %q: %v", line, err)
		}
		sum += n
	}
	return sum
}

// start starts a program that ends with the test at the latest; the channel is
// closed when it has ended.
func start(t *testing.T, cmd *exec.Cmd) <-chan struct{} {
	t.Helper()
	// A worker that outlives its master holds the pipe.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // whoever cares reads the program's log
		close(ended)
	}()
	t.Cleanup(func() { stop(cmd, ended) })
	return ended
}

// stop ends a program: first so that a master can end its workers.
func stop(cmd *exec.Cmd, ended <-chan struct{}) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
	}
}

// serve starts a server program in a pod and waits until it accepts connections.
func (w *world) serve(t *testing.T, p *lab.Pod, port int, name string, args ...string) *exec.Cmd {
	t.Helper()
	log := &transcript.Log{}
	cmd := p.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	ended := start(t, cmd)
	eventually(t, 30*time.Second, func() error {
		select {
		case <-ended:
			t.Fatalf("%s ended:\n%s", name, log)
		default:
		}
		conn, err := p.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
		}
		return err
	})
	return cmd
}

// service is a Service with its endpoints.
func service(name, ip string, p *lab.Pod, ready bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: shop}\nspec:\n  clusterIP: %q\n  ports:\n", name, ip)
	for n := firstPort; n <= lastPort; n++ {
		fmt.Fprintf(&b, "  - {name: p%d, port: %d, protocol: TCP}\n", n, n)
	}
	fmt.Fprintf(&b, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-1, namespace: shop, labels: {kubernetes.io/service-name: %s}}\naddressType: IPv4\n", name, name)
	fmt.Fprintf(&b, "endpoints: [{addresses: [%q], conditions: {ready: %v}}]\nports:\n", p.IPv4, ready)
	for n := firstPort; n <= lastPort; n++ {
		fmt.Fprintf(&b, "- {name: p%d, port: %d, protocol: TCP}\n", n, n)
	}
	return b.String()
}

func sandbox(name, key, from, to string) string {
	return fmt.Sprintf(`apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: %s, namespace: shop}
spec:
  routingKey: %q
  redirects: [{from: {service: %s}, to: {service: %s}}]
`, name, key, from, to)
}
