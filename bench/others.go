// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// Ways to load that have load generators and servers of others.
const (
	// http2Load is HTTP/2 by h2load, to nginx.
	http2Load = "HTTP/2"
	// grpcLoad is unary calls by a client of grpc-go, to a server of grpc-go.
	grpcLoad = "gRPC"
)

// Each of their connections has so many requests under way.
const (
	streamConnections = 8
	streamsEach       = 16
)

// other is how one of these ways is done.
type other struct {
	port    uint16
	haproxy netip.AddrPort
	// start starts the server of that name. It answers only what is meant for it.
	start func(s *scene, p *lab.Pod, name string) (*process, error)
	run   func(s *scene, ctx context.Context, l Load) ([]Measured, error)
}

var others map[string]other

// The functions need the map themselves.
func init() {
	others = map[string]other{
		http2Load: {81, netip.MustParseAddrPort("127.0.0.1:8081"), (*scene).startNginx, (*scene).runH2load},
		grpcLoad:  {82, netip.MustParseAddrPort("127.0.0.1:8082"), (*scene).startCalls, (*scene).runCalls},
	}
}

// serversOf are the two servers of a way.
func (s *scene) serversOf(way string) map[string]*process {
	if _, ok := others[way]; ok {
		return s.otherServers[way]
	}
	return s.servers
}

// startOthers starts the servers of those ways that are measured.
func (s *scene) startOthers(ctx context.Context, what []measurement) error {
	for way, o := range others {
		if !slices.ContainsFunc(what, func(m measurement) bool { return m.way == way }) {
			continue
		}
		if way == grpcLoad {
			checkout, err := programs.Checkout(ctx)
			if err != nil {
				return err
			}
			module := programs.Module{Dir: filepath.Join(checkout, "test", "conformance", "programs", "grpc")}
			if s.calls, err = module.Cached(ctx, "conformance", "calls", "./calls"); err != nil {
				return err
			}
		}
		s.otherServers[way] = map[string]*process{}
		for _, p := range []*lab.Pod{s.base, s.forked} {
			srv, err := o.start(s, p, p.Name)
			if err != nil {
				return err
			}
			s.otherServers[way][p.Name] = srv
			if err := s.await(p, netip.AddrPortFrom(p.IPv4, o.port), srv); err != nil {
				return err
			}
		}
	}
	return nil
}

// nginxConfig is one process that answers from memory. A request that is for the
// other server gets a 421, which h2load counts.
const nginxConfig = `daemon off;
master_process off;
error_log stderr crit;
pid %[1]s/pid;
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
    uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
    server {
        listen %[2]d http2;
        default_type text/plain;
        if ($http_baggage %[3]s "sidetrack=") { return 421; }
        location / { return 200 "%[4]s"; }
    }
}
`

func (s *scene) startNginx(p *lab.Pod, name string) (*process, error) {
	dir := filepath.Join(s.world.Dir(), "nginx-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make nginx's folder: %w", err)
	}
	mistaken := "~"
	if name == fork {
		mistaken = "!~"
	}
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConfig, dir, others[http2Load].port, mistaken, strings.Repeat(".", bodyBytes))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("configure nginx: %w", err)
	}
	return s.start(p, loadCore, s.outside, "nginx", "-p", dir, "-e", "stderr", "-c", config)
}

func (s *scene) startCalls(p *lab.Pod, name string) (*process, error) {
	return s.start(p, loadCore, s.outside, s.calls, "serve", "-name", name, "-port", strconv.Itoa(int(others[grpcLoad].port)))
}

// load runs a load generator of others where the load's path begins, and returns
// what it says and what was used meanwhile. Starting and ending are in that.
func (s *scene) load(ctx context.Context, l Load, name string, args ...string) (string, Measured, error) {
	var m Measured
	pod := s.client
	if l.Paths[0].Netns == s.runner.Path {
		pod = s.runner
	}
	cmd, err := s.command(pod, loadCore, l.Paths[0].Cgroup, name, args...)
	if err != nil {
		return "", m, err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	ctx, cancel := context.WithTimeout(ctx, l.Warmup+2*l.For+30*time.Second)
	defer cancel()
	before, err := takeAccounts(l.Watch)
	if err != nil {
		return "", m, err
	}
	if err := cmd.Start(); err != nil {
		return "", m, fmt.Errorf("start %s: %w", name, err)
	}
	defer context.AfterFunc(ctx, func() {
		// An error means that it has just ended.
		_ = cmd.Process.Kill()
	})()
	err = cmd.Wait()
	after, accountsErr := takeAccounts(l.Watch)
	if accountsErr != nil {
		return "", m, accountsErr
	}
	m.Used = after.since(before)
	m.Own = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if errors.As(err, new(*exec.ExitError)) && ctx.Err() == nil {
		// What it says tells more.
		err = nil
	}
	if err != nil {
		return "", m, fmt.Errorf("%s: %w: %s", filepath.Base(name), errors.Join(err, ctx.Err()), bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String() + stderr.String(), m, nil
}

// headers are those of requestHead, but for what HTTP/2 has not.
func headers(host, key string, tagged bool) (path string, all []string) {
	lines := strings.Split(strings.TrimSpace(string(requestHead(host, key, tagged, false))), "\r\n")
	for _, line := range lines[1:] {
		switch name, value, _ := strings.Cut(line, ": "); name {
		case "Host":
			all = append(all, ":authority: "+value)
		case "Connection":
		default:
			all = append(all, strings.ToLower(name)+": "+value)
		}
	}
	return strings.Fields(lines[0])[1], all
}

func (s *scene) runH2load(ctx context.Context, l Load) ([]Measured, error) {
	p := l.Paths[0]
	path, fields := headers(l.Host, l.Key, p.Tagged)
	seconds := math.Ceil((l.Warmup+l.For).Seconds()*10) / 10
	args := []string{"-t", "1", "-c", strconv.Itoa(streamConnections), "-m", strconv.Itoa(streamsEach),
		"-D", fmt.Sprintf("%.0fms", seconds*1000)}
	for _, f := range fields {
		args = append(args, "-H", f)
	}
	out, m, err := s.load(ctx, l, "h2load", append(args, fmt.Sprintf("http://%s%s", p.Target, path))...)
	if err != nil {
		return nil, err
	}
	if m, err = readH2load(out, m); err != nil {
		return nil, err
	}
	return []Measured{m}, nil
}

var (
	h2loadTime     = regexp.MustCompile(`(?m)^finished in ([0-9.]+)(ms|s),`)
	h2loadRequests = regexp.MustCompile(`(?m)^requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored`)
	h2loadStatus   = regexp.MustCompile(`(?m)^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx`)
)

// readH2load reads what h2load says.
func readH2load(out string, m Measured) (Measured, error) {
	took, requests, status := h2loadTime.FindStringSubmatch(out), h2loadRequests.FindStringSubmatch(out), h2loadStatus.FindStringSubmatch(out)
	if took == nil || requests == nil || status == nil {
		return m, fmt.Errorf("h2load says %q", first([]byte(out), 2000))
	}
	number := func(s string) int {
		n, err := strconv.Atoi(s)
		if err != nil {
			return math.MaxInt32 // more digits than there can be requests
		}
		return n
	}
	seconds, err := strconv.ParseFloat(took[1], 64)
	if err != nil {
		return m, fmt.Errorf("h2load says that it took %s: %w", took[1], err)
	}
	if took[2] == "ms" {
		seconds /= 1000
	}
	if number(status[3]) > 0 {
		return m, wrongAnswer{fmt.Sprintf("%s requests reached the server that they were not for", status[3])}
	}
	m.Seconds, m.Requests = seconds, number(status[1])
	if m.Errors = number(requests[3]) + number(requests[4]); m.Errors > 0 {
		m.FirstError = requests[0] + "; " + status[0]
	}
	return m, nil
}

func (s *scene) runCalls(ctx context.Context, l Load) ([]Measured, error) {
	p := l.Paths[0]
	key := ""
	if p.Tagged {
		key = l.Key
	}
	out, m, err := s.load(ctx, l, s.calls, "load", "-address", p.Target.String(), "-keys", key+"="+p.Want, "-baggage", "-unary",
		"-size", strconv.Itoa(bodyBytes), "-connections", strconv.Itoa(streamConnections), "-parallel", strconv.Itoa(streamsEach),
		"-for", (l.Warmup + l.For).String())
	if err != nil {
		return nil, err
	}
	var got struct {
		Calls, Misrouted, Failed int
		First                    string
		Seconds                  float64
	}
	// What stands around the JSON is for people.
	if err := json.NewDecoder(strings.NewReader(out[max(0, strings.Index(out, "{")):])).Decode(&got); err != nil {
		return nil, fmt.Errorf("calls says %q: %w", first([]byte(out), 2000), err)
	}
	if got.Misrouted > 0 {
		return nil, wrongAnswer{fmt.Sprintf("%d calls were misrouted: %s", got.Misrouted, got.First)}
	}
	m.Seconds, m.Requests, m.Errors, m.FirstError = got.Seconds, got.Calls-got.Failed, got.Failed, got.First
	return []Measured{m}, nil
}
