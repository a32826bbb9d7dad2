// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// Fields of connectrpc.conformance.v1: where the client finds the server, in
// ClientCompatRequest and in ServerCompatResponse, and a header of the request.
const (
	requestHost   = 6
	requestHeader = 15
	responseHost  = 1
)

// TestConnectServersAreTheSameThroughTheRouter: connect's reference client and
// grpc-go's, which send well-formed requests and raw ones, test connect's server
// with the protocols Connect, gRPC and gRPC-Web over HTTP/1 and HTTP/2.
func TestConnectServersAreTheSameThroughTheRouter(t *testing.T) {
	heavy(t)
	runner, server := program(t, "connect", "connectconformance"), program(t, "connect", "referenceserver")
	self, conf := executable(t), absolute(t, "testdata/connect.yaml")
	w := newWorld(t)
	w.decoy(t, every(forkPorts)...)
	comparison{cases: 1900, failing: []string{}, run: func(t *testing.T, v way, only []string) results {
		return conformance(t, w.from(v), only, runner, "--mode", "server", "--conf", conf, "--vv", "--",
			self, shimArg, w.to(v).Path, w.Cgroup, "responses", field(responseHost, serviceIP), "--",
			server, "-bind", "0.0.0.0")
	}}.over(t, untagged, injected)
}

// TestConnectClientsAreTheSameThroughTheRouter: connect's reference server and
// grpc-go's, which answer as they should and as they should not, test connect's
// client.
func TestConnectClientsAreTheSameThroughTheRouter(t *testing.T) {
	heavy(t)
	runner, client := program(t, "connect", "connectconformance"), program(t, "connect", "referenceclient")
	self, conf := executable(t), absolute(t, "testdata/connect.yaml")
	w := newWorld(t)
	w.decoy(t, every(forkPorts)...)
	comparison{cases: 2600, failing: []string{}, run: func(t *testing.T, v way, only []string) results {
		fields := field(requestHost, serviceIP)
		if key := w.key(v); key != "" {
			fields += field(requestHeader, header(keyHeader, key))
		}
		return conformance(t, w.to(v), only, runner, "--mode", "client", "--conf", conf, "--vv", "--bind", "0.0.0.0", "--",
			self, shimArg, w.from(v).Path, w.Cgroup, "requests", fields, "--", client)
	}}.over(t, untagged, tagged)
}

// What the runner says of a case: that it begins and that it has an answer (twice,
// because its threads write across each other's lines), that it failed, and how
// many there were.
var (
	caseSeen   = regexp.MustCompile(`(?:Sending request|Received response) for "([^"\n]*)"\.\.\.`)
	caseFailed = regexp.MustCompile(`(?m)^FAILED: (.*):\n((?:\t.*\n?|    .*\n?)*)`)
	caseTotal  = regexp.MustCompile(`(?m)^Total cases: (\d+)\n(\d+) passed, (\d+) failed`)
)

// conformance runs connect's runner in a pod.
func conformance(t *testing.T, p *lab.Pod, only []string, runner string, args ...string) results {
	for _, name := range only {
		args = append([]string{"--run", name}, args...)
	}
	cmd := p.Command(runner, args...)
	out, err := output(t, cmd, 5*time.Minute)
	total := caseTotal.FindStringSubmatch(out)
	if total == nil {
		t.Errorf("connect's runner: %v\n%s", err, lastLines(out, 20))
		return nil
	}
	got := results{}
	for _, m := range caseSeen.FindAllStringSubmatch(out, -1) {
		got[m[1]] = passed
	}
	failed := 0
	for _, m := range caseFailed.FindAllStringSubmatch(out, -1) {
		got[m[1]] = "failed: " + strings.TrimSpace(m[2])
		failed++
	}
	if total[1] != strconv.Itoa(len(got)) || total[3] != strconv.Itoa(failed) {
		t.Errorf("connect's runner says %q of %d cases and %d failures that are understood\n%s", total[0], len(got), failed, lastLines(out, 20))
	}
	return got
}

func lastLines(out string, n int) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func executable(t *testing.T) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
