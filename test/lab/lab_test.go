// SPDX-License-Identifier: Apache-2.0

package lab_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// own is the prefix of this process's names: others run such tests as well.
var own = fmt.Sprintf("sdtest-%d-", os.Getpid())

func TestPodsReachEachOtherOverBothFamiliesAndProtocols(t *testing.T) {
	w := lab.New(t)
	client := w.MustPod("client")
	server := w.MustPod("server", "10.96.0.10", "fd96::10")
	server.MustServeTCP("banner", ":5000")
	server.MustServeUDP("datagrams", ":5000")
	server.MustServeHTTP("web", ":80")
	for _, a := range server.Addrs() {
		client.MustReach("tcp", lab.HostPort(a, 5000), "banner")
		client.MustReach("udp", lab.HostPort(a, 5000), "datagrams")
		got := client.MustGet("http://"+lab.HostPort(a, 80)+"/x?y", "X-Test: 1")
		if got.Server != "web" || got.Pod != "server" || got.Target != "/x?y" || got.Header.Get("X-Test") != "1" {
			t.Errorf("%s: the server saw %+v", a, got)
		}
		remote := netip.MustParseAddrPort(got.Remote).Addr()
		if want := map[bool]netip.Addr{true: client.IPv4, false: client.IPv6}[a.Is4()]; remote != want {
			t.Errorf("%s: the server saw the client as %s, want %s", a, remote, want)
		}
	}
}

func TestPodsHaveLoopbackAndNothingElseOfTheHost(t *testing.T) {
	w := lab.New(t)
	p := w.MustPod("alone")
	p.MustServeTCP("loopback", "127.5.6.7:5000")
	p.MustReach("tcp", "127.5.6.7:5000", "loopback")
	err := p.Do(func() error {
		ifs, err := net.Interfaces()
		if err != nil {
			return err
		}
		var names []string
		for _, i := range ifs {
			names = append(names, i.Name)
		}
		if got := strings.Join(names, " "); got != "lo eth0" {
			t.Errorf("interfaces: %s", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCookiesTellPodsApart(t *testing.T) {
	w := lab.New(t)
	seen := map[uint64]bool{}
	for _, name := range []string{"a", "b", "c"} {
		c, err := w.MustPod(name).Cookie()
		if err != nil {
			t.Fatal(err)
		}
		if c == 0 || seen[c] {
			t.Errorf("pod %s: cookie %d, seen %v", name, c, seen)
		}
		seen[c] = true
	}
}

func TestCommandsRunInThePodAndItsCgroup(t *testing.T) {
	w := lab.New(t)
	p := w.MustPod("commands")
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Skip("no cat here")
	}
	cmd := p.Command(cat, "/proc/self/cgroup", "/proc/self/net/dev")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{filepath.Base(w.Cgroup) + "/pod-commands\n", "eth0:"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("want %q in:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "sidetrack-lab-enter") {
		t.Errorf("the command's own arguments are hidden:\n%s", out)
	}
}

func TestCommandKeepsArgumentsEnvironmentAndExitStatus(t *testing.T) {
	w := lab.New(t)
	p := w.MustPod("commands")
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no shell here")
	}
	cmd := p.Command("sh", "-c", `echo "$0 $1 $GREETING"; exit 3`, "zero", "two words")
	cmd.Env = []string{"GREETING=hello"}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("error %v, want exit status 3", err)
	}
	if got := string(out); got != "zero two words hello\n" {
		t.Errorf("output %q", got)
	}
}

func TestACommandThatIsMissingIsAnError(t *testing.T) {
	w := lab.New(t)
	if err := w.MustPod("p").Command("no-such-command-here").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error %v, want %v", err, exec.ErrNotFound)
	}
}

func TestThisProcessMovesIntoTheCgroupAndBack(t *testing.T) {
	read := func() string {
		b, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := read()
	w, err := lab.NewWorld("sdtest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := w.MoveSelf(); err != nil {
		t.Fatal(err)
	}
	if got := read(); !strings.Contains(got, filepath.Base(w.Cgroup)+"/self") {
		t.Errorf("inside: %s", got)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(); got != before {
		t.Errorf("afterwards %s, before %s", got, before)
	}
}

func TestClosingLeavesNothingBehindAndKillsWhatRuns(t *testing.T) {
	lab.NoLeaks(t, "", own)
	w, err := lab.NewWorld("sdtest")
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.AddPod("server")
	if err != nil {
		t.Fatal(err)
	}
	p.MustServeTCP("banner", ":1")
	conn, err := p.Dial("tcp", "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	var running *exec.Cmd
	if _, err := exec.LookPath("sleep"); err == nil {
		running = p.Command("sleep", "1000")
		if err := running.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if running != nil {
		if err := running.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("the command ended with %v", err)
		}
	}
	if _, err := os.Stat(w.BPFFS); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bpffs is still there: %v", err)
	}
	// The server closed its end.
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("read to the end: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestAPodThatIsRemovedMakesRoomForOneOfItsName(t *testing.T) {
	w := lab.New(t)
	client := w.MustPod("client")
	for _, name := range []string{"first", "second"} {
		p := w.MustPod("server", "10.96.0.20")
		p.MustServeTCP(name, ":5000")
		client.MustReach("tcp", lab.HostPort(p.IPv4, 5000), name)
		if err := p.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPodsNameMustBeFree(t *testing.T) {
	w := lab.New(t)
	w.MustPod("twin")
	if _, err := w.AddPod("twin"); !errors.Is(err, os.ErrExist) {
		t.Errorf("error %v, want %v", err, os.ErrExist)
	}
	w.MustPod("other")
}

func TestAWorldIsClosedThoughSomebodyHasMountedTheNamespacesAnew(t *testing.T) {
	// In a mount namespace of its own, so that nobody else has to do with it.
	if os.Getenv("SIDETRACK_LAB_HIDE") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "SIDETRACK_LAB_HIDE=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	w, err := lab.NewWorld("sdtest")
	if err != nil {
		t.Fatal(err)
	}
	p := w.MustPod("hidden")
	// As "ip netns add" does.
	if err := syscall.Mount(lab.NetnsDir, lab.NetnsDir, "none", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(p.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace's name is still there: %v", err)
	}
}

func TestLeaksAreFound(t *testing.T) {
	before, err := lab.Take("", own)
	if err != nil {
		t.Fatal(err)
	}
	w := lab.New(t)
	w.MustPod("leak")
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pin := filepath.Join(w.BPFFS, "pin")
	if err := os.Symlink("somewhere", pin); err != nil {
		t.Fatal(err)
	}
	after, err := lab.Take(w.BPFFS, own)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(after.Since(before), "\n")
	for _, want := range []string{"netns " + w.Name + "-leak", "cgroup " + w.Cgroup, "pin " + pin, "socket:["} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in:\n%s", want, got)
		}
	}
}

func TestSweepRemovesTheWorldsOfTheDead(t *testing.T) {
	const env = "SIDETRACK_LAB_LEAVE"
	if prefix := os.Getenv(env); prefix != "" {
		w, err := lab.NewWorld(prefix)
		if err != nil {
			t.Fatal(err)
		}
		w.MustPod("orphan")
		fmt.Println(w.Name)
		os.Exit(0)
	}
	prefix := fmt.Sprintf("sdtest-of%d", os.Getpid())
	child := lab.New(t).MustPod("child").Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), env+"="+prefix)
	out, err := child.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dead := strings.TrimSpace(string(out))
	alive, err := lab.NewWorld(prefix)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := alive.Close(); err != nil {
			t.Error(err)
		}
	}()
	removed, err := lab.Sweep(prefix)
	if err != nil {
		t.Error(err)
	}
	// Two namespaces, a cgroup, a folder.
	if got := strings.Join(removed, "\n"); strings.Count(got, dead) != 4 || strings.Contains(got, alive.Name) {
		t.Errorf("%s is dead and %s alive; removed:\n%s", dead, alive.Name, got)
	}
}

func TestClusterIPsLeadToEndpointsByNFT(t *testing.T) {
	w := lab.New(t)
	client, one, two := w.MustPod("client"), w.MustPod("one"), w.MustPod("two")
	one.MustServeTCP("one", ":5000")
	two.MustServeTCP("two", ":5000")
	for _, f := range []struct {
		service  string
		one, two netip.Addr
	}{
		{"10.96.0.30:80", one.IPv4, two.IPv4},
		{"[fd96::30]:80", one.IPv6, two.IPv6},
	} {
		err := client.DNAT("tcp", netip.MustParseAddrPort(f.service), netip.AddrPortFrom(f.one, 5000), netip.AddrPortFrom(f.two, 5000))
		if errors.Is(err, lab.ErrNoNFT) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for range 40 {
			name, err := client.Ask("tcp", f.service)
			if err != nil {
				t.Fatal(err)
			}
			got[name] = true
		}
		if len(got) != 2 {
			t.Errorf("%s led to %v, want both endpoints", f.service, got)
		}
	}
}
