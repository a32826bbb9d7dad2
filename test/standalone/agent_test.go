// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

// agent is a running sidetrackd.
type agent struct {
	t       *testing.T
	cmd     *exec.Cmd
	log     *transcript.Log
	metrics string // host:port
	// readySocket is where `sidetrackd ready` finds it; empty: nowhere.
	readySocket string
	done        chan struct{}
	err         error // of Wait; valid after done
}

// runDaemon starts sidetrackd with these arguments in the world's cgroup, where
// only its sockets' mark keeps it from being captured itself.
func runDaemon(t *testing.T, w *lab.World, args ...string) *agent {
	t.Helper()
	dir, err := w.Subgroup("agent")
	if err != nil {
		t.Fatal(err)
	}
	group, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer group.Close()
	a := &agent{t: t, log: &transcript.Log{}, done: make(chan struct{})}
	a.cmd = exec.Command(binary(t), args...)
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	if err := a.cmd.Start(); err != nil {
		t.Fatalf("start sidetrackd: %v", err)
	}
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
	}()
	t.Cleanup(func() {
		a.end()
		if t.Failed() && a.log.String() != "" {
			t.Logf("end of the agent's log:\n%s", a.log.Tail(40))
		}
	})
	return a
}

// end kills the agent if it is still there.
func (a *agent) end() {
	select {
	case <-a.done:
		return
	default:
	}
	_ = a.cmd.Process.Kill() // it may just have ended
	<-a.done
}

// freePort finds a port of the host's loopback that nobody listens on. It is none
// that the kernel may give to somebody before it is used.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}

// launch starts "sidetrackd run" without waiting for anything.
func launch(t *testing.T, w *lab.World, manifests string, extra ...string) *agent {
	t.Helper()
	metrics := freePort(t)
	args := append([]string{"run", "--manifests", manifests, "--cgroup", w.Cgroup, "--bpffs", w.BPFFS,
		"--metrics-address", metrics}, extra...)
	a := runDaemon(t, w, args...)
	a.metrics = metrics
	return a
}

// ready waits until /readyz answers 200.
func (a *agent) ready() {
	a.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		status, body, err := a.get("/readyz")
		if err == nil && status == http.StatusOK {
			return
		}
		select {
		case <-a.done:
			a.t.Fatalf("sidetrackd ended before it was ready: %v\n%s", a.err, a.log.Tail(40))
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("sidetrackd is not ready after %s: /readyz: %d %q %v\n%s", patience, status, body, err, a.log.Tail(40))
		}
	}
}

// get fetches from the metrics address over a new connection.
func (a *agent) get(path string) (int, string, error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := c.Get("http://" + a.metrics + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// signal sends a signal and waits for the end of the process.
func (a *agent) signal(sig syscall.Signal) error {
	a.t.Helper()
	if err := a.cmd.Process.Signal(sig); err != nil {
		a.t.Fatalf("signal sidetrackd: %v", err)
	}
	select {
	case <-a.done:
		return a.err
	case <-time.After(patience):
		a.t.Fatalf("sidetrackd is still there %s after %s\n%s", patience, sig, a.log.Tail(40))
		return nil
	}
}

// stop ends the agent as an init system does and wants exit status 0.
func (a *agent) stop() {
	a.t.Helper()
	if err := a.signal(syscall.SIGTERM); err != nil {
		a.t.Errorf("after SIGTERM: %v, want exit status 0\n%s", err, a.log.Tail(20))
	}
}

// kill is kill -9.
func (a *agent) kill() {
	a.t.Helper()
	// The error is "signal: killed".
	_ = a.signal(syscall.SIGKILL)
}

// wantLog waits for a line that contains all of words, in any case.
func (a *agent) wantLog(words ...string) {
	a.t.Helper()
	a.wantLogAfter(0, words...)
}

// wantLogAfter is wantLog for what comes after the log's first bytes.
func (a *agent) wantLogAfter(bytes int, words ...string) (line string) {
	a.t.Helper()
	if line = a.findLog(bytes, words...); line == "" {
		a.t.Errorf("no line of the log has all of %q:\n%s", words, a.log.Tail(30))
	}
	return line
}

func (a *agent) findLog(bytes int, words ...string) string {
	end := time.Now().Add(patience)
	for {
		for line := range strings.Lines(a.log.String()[bytes:]) {
			lower := strings.ToLower(line)
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(lower, strings.ToLower(w)) }) {
				return line
			}
		}
		if time.Now().After(end) {
			return ""
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sample is one line of /metrics.
type sample struct {
	name   string
	labels string // as printed, without braces
	value  float64
}

type samples []sample

// scrape reads /metrics.
func (a *agent) scrape() samples {
	a.t.Helper()
	status, body, err := a.get("/metrics")
	if err != nil || status != http.StatusOK {
		a.t.Fatalf("/metrics: %d %v", status, err)
	}
	var all samples
	lines := bufio.NewScanner(strings.NewReader(body))
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			a.t.Fatalf("/metrics: %q: %v", line, err)
		}
		name, labels, _ := strings.Cut(strings.TrimSuffix(line[:i], "}"), "{")
		all = append(all, sample{name, labels, v})
	}
	return all
}

// sum adds up the samples of a metric whose labels contain all of parts.
func (s samples) sum(name string, parts ...string) float64 {
	total := 0.0
	for _, m := range s {
		if m.name == name && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(m.labels, p) }) {
			total += m.value
		}
	}
	return total
}

// has reports whether there is a metric of this name.
func (s samples) has(name string) bool {
	return slices.ContainsFunc(s, func(m sample) bool { return m.name == name })
}

// residentKB reads how much memory of its own a process has.
func residentKB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssAnon in the process's status")
	return 0
}

// once runs a subcommand to its end and returns what it printed.
func once(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary(t), args...).CombinedOutput()
	if ctx.Err() != nil {
		return string(out), errors.Join(err, ctx.Err())
	}
	return string(out), err
}

// eventually calls f until it returns nil, and fails the test when it never does.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s still: %v", patience, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// inForce is how long a change may take to be in force. It is measured several
// times: a busy machine is forgiven some.
func inForce() time.Duration {
	if lab.InVM() {
		return 10 * time.Second
	}
	return time.Second
}

// expect is an error unless got is want.
func expect[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: %v, want %v", what, got, want)
	}
	return nil
}
