// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// ask is one request and the server that must answer it.
type ask struct {
	method, url, want string
	body              int // bytes
	headers           []string
}

// poolClient is one of the client programs of testdata: a connection pool that
// lives as long as the program and sends batches of requests.
type poolClient struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
	n   int
	err *transcript.Log
}

// clientKinds are the programs, by the name that messages use.
var clientKinds = []string{"requests", "httpx", "httpx-async", "Java", "Java, HTTP/1 only", "Node's fetch", "Go"}

func testdata(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startPool starts a client program in a pod.
func startPool(t *testing.T, p *lab.Pod, kind string) *poolClient {
	t.Helper()
	c := &poolClient{t: t, err: &transcript.Log{}}
	switch kind {
	case "requests":
		c.cmd = p.Command(requirePython(t, "requests"), testdata(t, "pool.py"), kind)
	case "httpx", "httpx-async":
		c.cmd = p.Command(requirePython(t, "httpx"), testdata(t, "pool.py"), kind)
	case "Java":
		programs.Need(t, "java")
		c.cmd = p.Command("java", "-XX:TieredStopAtLevel=1", testdata(t, "Pool.java"))
	case "Java, HTTP/1 only":
		programs.Need(t, "java")
		c.cmd = p.Command("java", "-XX:TieredStopAtLevel=1", testdata(t, "Pool.java"), "http1")
	case "Node's fetch":
		programs.Need(t, "node")
		c.cmd = p.Command("node", testdata(t, "pool.mjs"))
	case "Go":
		c.startGo(p)
		return c
	default:
		t.Fatalf("no client %q", kind)
	}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stderr = c.err
	c.cmd.WaitDelay = time.Second
	if err := c.cmd.Start(); err != nil {
		t.Fatalf("start the client: %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait() // it has been killed
	})
	c.in, c.out = in, bufio.NewReader(out)
	return c
}

// send sends a batch with so many requests at a time and returns how many went
// wrong, with a sample.
func (c *poolClient) send(concurrency int, asks []ask) (wrong int, sample string) {
	c.t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, "batch %d %d\n", concurrency, len(asks))
	for _, a := range asks {
		c.n++
		fmt.Fprintln(&b, strings.Join(append([]string{a.method, a.url, a.want, strconv.Itoa(c.n), strconv.Itoa(a.body)}, a.headers...), "\t"))
	}
	if _, err := c.in.Write(b.Bytes()); err != nil {
		c.t.Fatalf("write to the client: %v\n%s", err, c.err.Tail(20))
	}
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := c.out.ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		var n int
		if _, err := fmt.Sscan(a.line, &n, &wrong); err != nil || a.err != nil || n != len(asks) {
			c.t.Fatalf("the client answered %q, %v\n%s", a.line, a.err, c.err.Tail(20))
		}
		return wrong, strings.TrimSpace(a.line)
	case <-time.After(120 * time.Second):
		c.t.Fatalf("the client is stuck\n%s", c.err.Tail(20))
		return 0, ""
	}
}

// mustSend wants nothing to go wrong.
func (c *poolClient) mustSend(concurrency int, asks []ask) {
	c.t.Helper()
	if wrong, sample := c.send(concurrency, asks); wrong > 0 {
		c.t.Errorf("%d of %d requests went wrong: %s", wrong, len(asks), sample)
	}
}

// startGo runs the same protocol on net/http within this process.
func (c *poolClient) startGo(p *lab.Pod) {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	c.in, c.out = inW, bufio.NewReader(outR)
	client := &http.Client{Transport: &http.Transport{DialContext: p.DialContext, MaxIdleConnsPerHost: 64}, Timeout: 30 * time.Second}
	c.t.Cleanup(func() {
		inW.Close()
		outR.Close()
		client.CloseIdleConnections()
	})
	go func() {
		lines := bufio.NewScanner(inR)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var concurrency, count int
			if _, err := fmt.Sscanf(lines.Text(), "batch %d %d", &concurrency, &count); err != nil {
				outW.CloseWithError(err)
				return
			}
			work := make(chan string, count)
			for i := 0; i < count && lines.Scan(); i++ {
				work <- lines.Text()
			}
			close(work)
			var wg sync.WaitGroup
			var mu sync.Mutex
			wrong, first := 0, ""
			for range concurrency {
				wg.Go(func() {
					for line := range work {
						if err := goOne(client, line); err != nil {
							mu.Lock()
							if wrong++; wrong == 1 {
								first = err.Error()
							}
							mu.Unlock()
						}
					}
				})
			}
			wg.Wait()
			if _, err := fmt.Fprintf(outW, "%d %d %s\n", count, wrong, first); err != nil {
				return
			}
		}
	}()
}

func goOne(client *http.Client, line string) error {
	f := strings.Split(line, "\t")
	size, err := strconv.ParseInt(f[4], 10, 64)
	if err != nil {
		return err
	}
	var body io.Reader
	if size > 0 {
		body = io.LimitReader(noise(1, size), size) // of unknown length: chunked
	}
	req, err := http.NewRequest(f[0], f[1], body)
	if err != nil {
		return err
	}
	req.Header.Set("X-Expect", f[2])
	req.Header.Set("X-Number", f[3])
	for _, h := range f[5:] {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("request %s: %w", f[3], err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("request %s: %w", f[3], err)
	}
	if by, n := resp.Header.Get(lab.ServedBy), resp.Header.Get("X-Number"); resp.StatusCode != http.StatusOK || by != f[2] || n != f[3] {
		return fmt.Errorf("request %s: status %d, served by %s as number %s, want %s", f[3], resp.StatusCode, by, n, f[2])
	}
	return nil
}

// tag is one way to tag a request, or not to.
type tag struct {
	want    string
	headers []string
}

// tags are untagged requests and requests of two sandboxes, with the key in each
// of its places.
func (s *shop) tags() []tag {
	a, b := s.want("fork-a"), s.want("fork-b")
	return []tag{
		{"baseline", nil},
		{"baseline", []string{"baggage: userId=7,other=x;sidetrack=" + keyA, "tracestate: vendor=abc"}},
		{"baseline", []string{"x-sidetrack-key: nobody-has-this-key"}},
		{a, []string{"x-sidetrack-key: " + keyA}},
		{b, []string{"X-SIDETRACK-KEY: " + keyB}},
		{a, []string{"baggage: userId=7, sidetrack=" + keyA + ";ttl=1,z=2"}},
		{b, []string{"Baggage: sd-routing-key=" + keyB}},
		{a, []string{"baggage: sidetrack=%61" + keyA[1:]}},
		{b, []string{"tracestate: vendor=abc,sidetrack=" + keyB}},
		// Baggage before tracestate before the header; a key that nobody has is none.
		{a, []string{"x-sidetrack-key: " + keyB, "baggage: sidetrack=" + keyA}},
		{b, []string{"x-sidetrack-key: " + keyA, "tracestate: sd-routing-key=" + keyB}},
		{b, []string{"x-sidetrack-key: " + keyB, "baggage: sidetrack=nobody-has-this-key"}},
	}
}

// mixed makes n requests to a URL, tagged and untagged interleaved.
func (s *shop) mixed(url string, n int) []ask {
	tags := s.tags()
	random := rand.New(rand.NewPCG(1, uint64(n)))
	asks := make([]ask, n)
	for i := range asks {
		tg := tags[random.IntN(len(tags))]
		asks[i] = ask{method: "GET", url: url, want: tg.want, headers: tg.headers}
		if i%4 == 3 {
			asks[i].method, asks[i].body = "POST", 1+random.IntN(5000)
		}
	}
	return asks
}

// serverURLs are the three Services with three kinds of servers.
var serverURLs = map[string]string{
	"Go":     "http://" + webIP + ":80/",
	"nginx":  "http://[fd96::52]:82/",
	"Python": "http://10.96.0.53:83/",
}

// serveAllKinds starts nginx, Python's http.server and Go's on all places.
func (s *shop) serveAllKinds(t *testing.T) {
	t.Helper()
	programs.Need(t, "nginx")
	python := requirePython(t)
	s.serveEcho()
	for name, p := range s.places() {
		s.startNginx(t, p, name, "nginx-server.conf", "127.0.0.1:82")
		s.program(t, p.Command(python, testdata(t, "serve.py"), name, "83", "8083"), p, "127.0.0.1:8083")
	}
}

// startNginx starts nginx with a configuration of testdata and a folder of its own.
func (s *shop) startNginx(t *testing.T, p *lab.Pod, name, conf, address string) (dir string) {
	t.Helper()
	dir = filepath.Join(s.Dir(), "nginx-"+p.Name)
	if err := os.MkdirAll(filepath.Join(dir, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(testdata(t, conf))
	if err != nil {
		t.Fatal(err)
	}
	file := s.file("nginx-"+p.Name+".conf", strings.NewReplacer("DIR", dir, "NAME", name).Replace(string(text)))
	s.program(t, p.Command("nginx", "-p", dir, "-e", "stderr", "-c", file), p, address)
	return dir
}

// program starts a server program and waits until it accepts connections. It is
// ended with the test.
func (s *shop) program(t *testing.T, cmd *exec.Cmd, p *lab.Pod, address string) *transcript.Log {
	t.Helper()
	log := &transcript.Log{}
	cmd.Stdout, cmd.Stderr = log, log
	// A worker that outlives its master holds the pipe.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		// First so that a master can end its workers.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(3 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	eventually(t, func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", cmd.Args, err, log)
		default:
		}
		conn, err := p.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return log
}
