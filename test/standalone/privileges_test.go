// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// capabilities are those that deploy/ gives to the agent.
var capabilities = map[string]uintptr{
	"CAP_NET_ADMIN": unix.CAP_NET_ADMIN,
	"CAP_NET_RAW":   unix.CAP_NET_RAW,
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"CAP_BPF":       unix.CAP_BPF,
	"CAP_PERFMON":   unix.CAP_PERFMON,
}

// TestTheUnitsCapabilitiesAreEnough runs the agent with what the systemd unit
// gives it and nothing more, and sees everything work that takes a privilege:
// loading, entering namespaces, marking sockets, closing others' connections.
func TestTheUnitsCapabilitiesAreEnough(t *testing.T) {
	programs.Need(t, "curl")
	unit, err := os.ReadFile("../../deploy/systemd/sidetrackd.service")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.+)$`).FindSubmatch(unit)
	if line == nil {
		t.Fatal("the unit has no CapabilityBoundingSet")
	}
	var keep []uintptr
	for _, name := range strings.Fields(string(line[1])) {
		c, ok := capabilities[name]
		if !ok {
			t.Fatalf("the unit gives %s, which this test does not know", name)
		}
		keep = append(keep, c)
	}

	s := newShop(t)
	s.serveSeen()
	idle, err := s.client.Dial("tcp", webIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()

	keepOnly(t, keep...)
	s.start()
	var mask uint64
	for _, c := range keep {
		mask |= 1 << c
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.agent.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("CapEff:\t%016x\n", mask); !strings.Contains(string(status), want) {
		t.Errorf("the agent's capabilities are not %q:\n%s", want, status)
	}
	for want, args := range map[string][]string{
		"baseline": nil,
		"fork-a":   {"-H", "baggage: sidetrack=" + keyA},
		"fork-b":   {"-H", "baggage: sidetrack=" + keyB},
	} {
		args = append([]string{"-q", "-sS", "-o", "/dev/null", "-w", "%header{x-served-by}", "http://" + webIP + "/"}, args...)
		if out, err := s.client.Command("curl", args...).CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%v: %s answered, want %s", err, out, want)
		}
	}
	out, err := s.tester.Command("curl", "-q", "-sS", "-o", "/dev/null", "-w", "%header{x-served-by}", "http://"+webIP+"/").CombinedOutput()
	if err != nil || string(out) != "fork-a" {
		t.Errorf("from the sandbox's pod: %v: %s answered, want fork-a", err, out)
	}
	// The connection from before is closed although it is not the agent's.
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("the idle connection from before is still there")
	}
	s.agent.stop()
}

// keepOnly has the test's thread, and with it the agent that it starts, give up
// all capabilities but these. The thread ends with the test, since it is never
// unlocked.
func keepOnly(t *testing.T, keep ...uintptr) {
	t.Helper()
	runtime.LockOSThread()
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if slices.Contains(keep, c) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			t.Fatalf("give up capability %d: %v", c, err)
		}
	}
}

// TestWithoutRawSocketsClientsAreConnectedFirst: all else holds, and it is said and
// counted.
func TestWithoutRawSocketsClientsAreConnectedFirst(t *testing.T) {
	programs.Need(t, "curl")
	s := newShop(t)
	s.serveSeen()
	keepOnly(t, unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN)
	s.start()
	for want, args := range map[string][]string{"baseline": nil, "fork-a": {"-H", "baggage: sidetrack=" + keyA}} {
		args = append([]string{"-q", "-sS", "-o", "/dev/null", "-w", "%header{x-served-by}", "http://" + webIP + "/"}, args...)
		if out, err := s.client.Command("curl", args...).CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("%v: %s answered, want %s", err, out, want)
		}
	}
	c, err := s.client.Dial("tcp", fmt.Sprintf("%s:%d", wideIP, s.nextPort()))
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a baseline that refuses: %v, want %v", err, unix.ECONNRESET)
	}
	s.agent.wantLog("CAP_NET_RAW")
	if n := s.agent.scrape().sum("sidetrack_router_errors_total", `reason="not_held"`); n != 3 {
		t.Errorf("%v connections are counted, want 3", n)
	}
	s.agent.stop()
}
