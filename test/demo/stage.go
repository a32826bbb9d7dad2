// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"text/template"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/transcript"
)

const (
	prefix = "sddemo"
	// key is the sandbox's routing key. A real one is random.
	key = "key-of-pr-42"

	baseline = "baseline"
	fork     = "pr-42"

	frontendURL  = "http://10.96.0.11/"
	middleURL    = "http://10.96.0.12/"
	lastURL      = "http://10.96.0.13/"
	storeAddress = "10.96.0.14:5000"

	// There is no kube-proxy here. A ClusterIP stands on its service's pod, which
	// therefore listens on the service's port as well as on its own.
	webPorts = ":80,:8080"
)

//go:embed manifests
var manifests embed.FS

// cast are the pods and what runs in them.
var cast = []struct {
	pod       string
	clusterIP string
	args      []string
	ready     string // address that answers when it has started
}{
	{pod: "client"},
	{pod: "runner"},
	{"frontend", "10.96.0.11", []string{"service", "-name", "frontend", "-version", baseline, "-listen", webPorts, "-next", middleURL}, ":8080"},
	{"middle", "10.96.0.12", []string{"service", "-name", "middle", "-version", baseline, "-listen", webPorts, "-next", lastURL}, ":8080"},
	{"last", "10.96.0.13", []string{"service", "-name", "last", "-version", baseline, "-listen", webPorts}, ":8080"},
	{"last-pr-42", "", []string{"service", "-name", "last", "-version", fork, "-listen", ":8080"}, ":8080"},
	{"store", "10.96.0.14", []string{"store", "-version", baseline, "-listen", ":5000"}, ":5000"},
	{"store-pr-42", "", []string{"store", "-version", fork, "-listen", ":5000"}, ":5000"},
}

// stage is where the demo takes place.
type stage struct {
	world   *lab.World
	pods    map[string]*lab.Pod
	log     transcript.Log
	verbose bool

	agent *exec.Cmd
	ended chan struct{} // closed when the agent has ended, with endErr
	// endErr is how the agent ended.
	endErr error
}

// build makes the pods and starts their services. What it returns must be
// closed, also with an error.
func build(ctx context.Context, verbose bool) (*stage, error) {
	s := &stage{pods: map[string]*lab.Pod{}, verbose: verbose}
	var err error
	if s.world, err = lab.NewWorld(prefix); err != nil {
		return s, err
	}
	// The demo's own requests come from pods, too.
	if err := s.world.MoveSelf(); err != nil {
		return s, err
	}
	for _, c := range cast {
		p, err := s.world.AddPod(c.pod)
		if err != nil {
			return s, err
		}
		s.pods[c.pod] = p
		if c.clusterIP != "" {
			if err := p.AddAddr(clusterIP(c.clusterIP)); err != nil {
				return s, err
			}
		}
		if c.args == nil {
			continue
		}
		cmd := p.Command("/proc/self/exe", c.args...)
		cmd.Stdout, cmd.Stderr = s.output(), s.output()
		if err := cmd.Start(); err != nil {
			return s, fmt.Errorf("start %s: %w", c.pod, err)
		}
		// The world's end kills it; this only takes note.
		go func() { _ = cmd.Wait() }()
	}
	for _, c := range cast {
		if c.ready == "" {
			continue
		}
		address := s.pods[c.pod].IPv4.String() + c.ready
		err := until(ctx, lab.Patience(10*time.Second), func() error {
			conn, err := s.pods["client"].DialContext(ctx, "tcp", address)
			if err != nil {
				return err
			}
			return conn.Close()
		})
		if err != nil {
			return s, fmt.Errorf("wait for %s: %w\n%s", c.pod, err, s.log.String())
		}
	}
	return s, nil
}

func (s *stage) close() error {
	if s.world == nil {
		return nil
	}
	return errors.Join(s.stopAgent(), s.world.Close())
}

// output is where the agent and the services log to.
func (s *stage) output() io.Writer {
	if s.verbose {
		return os.Stderr
	}
	return &s.log
}

// startAgent writes the manifests and starts sidetrackd on them.
func (s *stage) startAgent(ctx context.Context, program string) error {
	dir := filepath.Join(s.world.Dir(), "manifests")
	if err := s.writeManifests(dir); err != nil {
		return err
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	agent := exec.Command(program, "run", "--manifests", dir, "--cgroup", s.world.Cgroup,
		"--bpffs", s.world.BPFFS, "--metrics-address", address)
	agent.Stdout, agent.Stderr = s.output(), s.output()
	// Ctrl-C reaches everything on the terminal; it is the demo that stops it.
	agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := agent.Start(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	s.agent = agent
	s.ended = make(chan struct{})
	go func() {
		s.endErr = agent.Wait()
		close(s.ended)
	}()
	err = until(ctx, lab.Patience(30*time.Second), func() error {
		select {
		case <-s.ended:
			return stop{fmt.Errorf("the agent has ended: %w", errors.Join(s.endErr, errors.New("see its log")))}
		default:
		}
		resp, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: %s", resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for the agent: %w\n%s", err, s.log.String())
	}
	return nil
}

// stopAgent stops the agent as Kubernetes would. It may be called again.
func (s *stage) stopAgent() error {
	if s.agent == nil {
		return nil
	}
	agent := s.agent
	s.agent = nil
	if err := agent.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the agent: %w", err)
	}
	select {
	case <-s.ended:
	case <-time.After(lab.Patience(20 * time.Second)):
		// The world's end kills it.
		return errors.New("the agent does not stop")
	}
	if s.endErr != nil {
		return fmt.Errorf("the agent ended badly: %w\n%s", s.endErr, s.log.String())
	}
	return nil
}

// writeManifests fills the manifests in and writes them to dir.
func (s *stage) writeManifests(dir string) error {
	pod := func(name string) (*lab.Pod, error) {
		if p := s.pods[name]; p != nil {
			return p, nil
		}
		return nil, fmt.Errorf("there is no pod %s", name)
	}
	t, err := template.New("").Funcs(template.FuncMap{
		"key": func() string { return key },
		"addr": func(name string) (string, error) {
			p, err := pod(name)
			if err != nil {
				return "", err
			}
			return p.IPv4.String(), nil
		},
		"netns": func(name string) (string, error) {
			p, err := pod(name)
			if err != nil {
				return "", err
			}
			return p.Netns, nil
		},
	}).ParseFS(manifests, "manifests/*.yaml")
	if err != nil {
		return fmt.Errorf("read the manifests: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("write the manifests: %w", err)
	}
	for _, m := range t.Templates() {
		var out bytes.Buffer
		if err := m.Execute(&out, nil); err != nil {
			return fmt.Errorf("fill in the manifests: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, m.Name()), out.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write the manifests: %w", err)
		}
	}
	return nil
}

// freeAddress returns an address on loopback that nobody listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// stop is an error after which there is no sense in trying again.
type stop struct{ error }

// until calls f until it succeeds, stops, or the time is over.
func until(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil || errors.As(err, &stop{}) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
