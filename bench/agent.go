// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// manifests are the objects of the scene: the Service, its stand-in, the two
// pods, and a sandbox that leads from the one Service to the other.
const manifests = `apiVersion: v1
kind: Service
metadata: {name: web, namespace: bench}
spec: {clusterIP: %[1]s, ports: [{name: http, port: %[7]d}, {name: h2, port: 81}, {name: grpc, port: 82}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: bench, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: %[7]d, protocol: TCP}, {name: h2, port: 81, protocol: TCP}, {name: grpc, port: 82, protocol: TCP}]
endpoints: [{addresses: ["%[2]s"], conditions: {ready: true}}]
---
apiVersion: v1
kind: Service
metadata: {name: web-fork, namespace: bench}
spec: {clusterIP: %[3]s, ports: [{name: http, port: %[7]d}, {name: h2, port: 81}, {name: grpc, port: 82}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-fork-1, namespace: bench, labels: {kubernetes.io/service-name: web-fork}}
addressType: IPv4
ports: [{name: http, port: %[7]d, protocol: TCP}, {name: h2, port: 81, protocol: TCP}, {name: grpc, port: 82, protocol: TCP}]
endpoints: [{addresses: ["%[4]s"], conditions: {ready: true}}]
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-1, namespace: bench}
spec:
  routingKey: %[8]s
  redirects:
  - from: {service: web}
    to: {service: web-fork}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: bench, annotations: {sidetrack.dev/netns: "%[5]s"}}
spec: {containers: [{name: c, image: c}]}
---
apiVersion: v1
kind: Pod
metadata:
  name: runner
  namespace: bench
  annotations: {sidetrack.dev/netns: "%[6]s"}
  labels: {sidetrack.dev/sandbox: pr-1}
spec: {containers: [{name: c, image: c}]}
`

func (s *scene) manifests() string {
	return fmt.Sprintf(manifests, serviceIP, s.base.IPv4, forkIP, s.forked.IPv4, s.client.Path, s.runner.Path, port, routingKey)
}

// buildAgent compiles sidetrackd, unless the path of one is given.
func buildAgent(ctx context.Context, dir, given string) (string, error) {
	if given != "" {
		path, err := filepath.Abs(given)
		if err != nil {
			return "", fmt.Errorf("find sidetrackd: %w", err)
		}
		return path, nil
	}
	path := filepath.Join(dir, "sidetrackd")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/sidetrack-dev/sidetrack/cmd/sidetrackd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build sidetrackd: %w\n%s", err, out)
	}
	return path, nil
}

// startAgent starts sidetrackd on the proxy's core, with one event loop, for
// what is in the covered cgroup.
func (s *scene) startAgent(ctx context.Context, given string, more ...string) error {
	path, err := buildAgent(ctx, s.world.Dir(), given)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.world.Dir(), "manifests")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of manifests: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.yaml"), []byte(s.manifests()), 0o600); err != nil {
		return fmt.Errorf("write the manifests: %w", err)
	}
	s.agent, err = s.runAgent(ctx, path, dir, more...)
	return err
}

// runAgent starts sidetrackd and waits until it is ready.
func (s *scene) runAgent(ctx context.Context, path, dir string, more ...string) (*process, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	args := append([]string{
		"run", "--manifests", dir, "--cgroup", s.covered, "--bpffs", s.world.BPFFS,
		"--metrics-address", address, "--loops", "1",
	}, more...)
	p, err := s.start(nil, otherCore, s.outside, path, args...)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(time.Minute); ; {
		status, err := get(ctx, "http://"+address+"/readyz")
		if err == nil && status == http.StatusOK {
			return p, nil
		}
		if err := p.ended(); err != nil {
			return nil, err
		}
		if time.Now().After(end) {
			p.stop()
			return nil, fmt.Errorf("sidetrackd is not ready after a minute: status %d, %w\n%s", status, err, p.out)
		}
		select {
		case <-ctx.Done():
			p.stop()
			return nil, fmt.Errorf("wait for sidetrackd: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, url string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, fmt.Errorf("ask sidetrackd: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("ask sidetrackd: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, fmt.Errorf("ask sidetrackd: %w", err)
	}
	return resp.StatusCode, nil
}

// freeAddress is a loopback address that nobody listens on, or did a moment ago.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}
