// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// clientEnv makes the test binary a client, because a process is in one cgroup: its
// value is a network and an address. It prints who answers.
const clientEnv = "SIDETRACK_TEST_CLIENT"

func init() {
	order := os.Getenv(clientEnv)
	if order == "" {
		return
	}
	network, address, _ := strings.Cut(order, " ")
	said, err := ask(network, address)
	if err != nil {
		said = "error: " + err.Error()
	}
	fmt.Println(said)
	os.Exit(0)
}

func ask(network, address string) (string, error) {
	if strings.HasPrefix(network, "tcp") {
		c, err := net.DialTimeout(network, address, soon)
		if err != nil {
			return "", err
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		return strings.TrimSpace(line), err
	}
	c, err := net.ListenPacket(network, ":0")
	if err != nil {
		return "", err
	}
	to, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		return "", err
	}
	if _, err := c.WriteTo([]byte("who\n"), to); err != nil {
		return "", err
	}
	c.SetReadDeadline(time.Now().Add(soon))
	b := make([]byte, 512)
	n, from, err := c.ReadFrom(b)
	if err == nil && from.String() != to.String() {
		err = fmt.Errorf("the answer is from %s, %s was asked", from, to)
	}
	who, _, _ := strings.Cut(string(b[:n]), "\n")
	return who, err
}

// from has a process of a cgroup ask an address in the network namespace of p.
func (s *scene) from(p *lab.Pod, cgroup, network, address string) string {
	s.Helper()
	dir, err := s.w.Subgroup(cgroup)
	s.must(err)
	f, err := os.Open(dir)
	s.must(err)
	defer f.Close()
	self, err := os.Executable()
	s.must(err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), clientEnv+"="+network+" "+address)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	s.must(p.Do(cmd.Start))
	s.must(cmd.Wait())
	return strings.TrimSpace(out.String())
}

func (s *scene) hostPod(cgroup string) routing.Cookie {
	s.Helper()
	dir, err := s.w.Subgroup(cgroup)
	s.must(err)
	var st unix.Stat_t
	s.must(unix.Stat(dir, &st))
	return routing.HostPod(st.Ino)
}

func TestPodsOnTheHostsNetworkAreToldApartByTheirCgroups(t *testing.T) {
	s := newScene(t)
	host := s.w.MustPod("host")
	const tagged, plain, system = "kubepods/burstable/pod1", "kubepods/pod2", "system/daemon"
	s.input.Pods = append(s.input.Pods,
		routing.Pod{Name: routing.Name{Namespace: "shop", Name: "h1"}, Netns: s.hostPod(tagged), Sandbox: sandbox.Name},
		routing.Pod{Name: routing.Name{Namespace: "shop", Name: "h2"}, Netns: s.hostPod(plain)},
	)
	cfg := s.config()
	cfg.HostPods = true
	s.must(host.Do(func() (err error) {
		s.k, err = Open(cfg)
		return err
	}))
	t.Cleanup(func() { s.k.Close() })
	s.apply()
	want := func(p *lab.Pod, cgroup, network, address, who string) {
		t.Helper()
		if got := s.from(p, cgroup, network, address); got != who {
			t.Errorf("%s %s from cgroup %s: %q answers, want %q", network, address, cgroup, got, who)
		}
	}
	for _, d := range []struct{ network, address string }{
		{"tcp4", at(webVIP4, 80)}, {"tcp6", at(webVIP6, 80)}, {"udp4", at(webVIP4, 53)}, {"udp6", at(webVIP6, 53)},
	} {
		want(host, tagged+"/c", d.network, d.address, "fork")
		want(host, plain+"/c", d.network, d.address, "baseline")
		want(host, system, d.network, d.address, "baseline")
	}
	// As deep as a container likes.
	want(host, tagged+"/c/init.scope/x", "tcp4", at(webVIP4, 80), "fork")
	// In a namespace of its own it is the namespace that counts.
	want(s.other, tagged+"/c", "tcp4", at(webVIP4, 80), "baseline")
	want(s.tagged, plain+"/c", "tcp4", at(webVIP4, 80), "fork")

	// The router listens for one of them: the others of that namespace do not meet it.
	r := newRouterStub(s, host)
	s.must(s.k.SetNamespaces(map[routing.Cookie]Listener{s.hostPod(plain): {Port4: r.port4, Port6: r.port6}}))
	for _, d := range []struct{ network, address string }{{"tcp4", at(webVIP4, 80)}, {"tcp6", at(webVIP6, 80)}} {
		want(host, plain+"/c", d.network, d.address, "router")
		<-r.came
		want(host, tagged+"/c", d.network, d.address, "fork")
		want(host, system, d.network, d.address, "baseline")
	}
	// With inject, the tagged one has a listener of its own.
	s.input.Pods[2].Inject = true
	s.apply()
	mine := newRouterStub(s, host)
	s.must(s.k.SetNamespaces(map[routing.Cookie]Listener{
		s.hostPod(plain):  {Port4: r.port4, Port6: r.port6},
		s.hostPod(tagged): {Port4: mine.port4, Port6: mine.port6},
	}))
	want(host, tagged+"/c", "tcp4", at(webVIP4, 80), "router")
	mine.mustHaveCaptured(s, at(webVIP4, 80))
	want(host, plain+"/c", "tcp4", at(webVIP4, 80), "router")
	r.mustHaveCaptured(s, at(webVIP4, 80))
}

func TestWithoutHostPodsTheHostsNetworkIsOneSource(t *testing.T) {
	s := newScene(t)
	host := s.w.MustPod("host")
	s.input.Pods = append(s.input.Pods,
		routing.Pod{Name: routing.Name{Namespace: "shop", Name: "h1"}, Netns: s.hostPod("kubepods/pod1"), Sandbox: sandbox.Name})
	s.start()
	if got := s.from(host, "kubepods/pod1/c", "tcp4", at(webVIP4, 80)); got != "baseline" {
		t.Errorf("%q answers, want the baseline", got)
	}
}
