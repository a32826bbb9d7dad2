// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestAKilledAgentLeavesFlowsInForceAndNoCapture(t *testing.T) {
	s := newScene(t)
	a := s.spawn(s.config())
	dst := at(webVIP4, 80)
	open := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst).mustHear("fork")
	datagrams := s.socket(s.tagged, unix.AF_INET, unix.SOCK_DGRAM)
	datagrams.mustAsk(at(webVIP4, 53), "fork", at(webVIP4, 53))
	if n := len(attached(s, "sd_capture4")); n != 1 {
		t.Fatalf("%d capture programs are attached, want 1", n)
	}

	a.kill()
	eventually(t, func() error {
		if n := len(attached(s, "sd_capture4")); n != 0 {
			return errors.New("capture outlives the agent")
		}
		return nil
	})
	s.tagged.MustReach("tcp4", dst, "fork")
	s.other.MustReach("tcp4", dst, "baseline")
	open.mustShowPeer(dst)

	// Its successor knows what the open sockets dialled, whatever its own sizes.
	cfg := s.config()
	cfg.MaxFlowRoutes *= 2
	k, err := Open(cfg)
	s.must(err)
	defer k.Close()
	s.k = k
	// Loaded is not published: the old maps decide until then.
	s.tagged.MustReach("tcp4", dst, "fork")
	s.apply()
	open.mustShowPeer(dst)
	datagrams.mustAsk(at(webVIP4, 53), "fork", at(webVIP4, 53))
	s.tagged.MustReach("tcp4", dst, "fork")
	if n := len(attached(s, "sd_connect4")); n != 1 {
		t.Errorf("%d flow programs are attached, want 1", n)
	}
}

func TestRestartsLeakNothing(t *testing.T) {
	s := newScene(t)
	cfg := s.config()
	// Other agents may be at work on this machine: ours are known by a size that
	// nobody else has.
	cfg.MaxFlowRoutes = 1000 + uint32(os.Getpid()%50000)
	s.spawn(cfg).kill()
	var before []string
	eventually(t, func() error {
		before = things(s, cfg.MaxFlowRoutes)
		// All pins, the map, and connect4, connect6, sendmsg4 and sendmsg6.
		if n := len(before); n != len(mapNames)+len(flowPrograms)+1+4 {
			return fmt.Errorf("a killed agent leaves %d things: %v", n, before)
		}
		return nil
	})
	for range slowly(50, 5) {
		s.spawn(cfg).kill()
		s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	}
	eventually(t, func() error {
		if diff := cmp.Diff(before, things(s, cfg.MaxFlowRoutes)); diff != "" {
			return errors.New("what is left of one agent and of many (-one +many):\n" + diff)
		}
		return nil
	})

	s.must(Uninstall(s.w.BPFFS, nil))
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "baseline")
	eventually(t, func() error {
		if after := things(s, cfg.MaxFlowRoutes); len(after) > 0 {
			return fmt.Errorf("uninstall leaves %v", after)
		}
		return nil
	})
	if _, err := os.Stat(pinDir(s.w.BPFFS)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("uninstall leaves %s: %v", pinDir(s.w.BPFFS), err)
	}
}

// things lists our pins in the world and, of the whole kernel, the sd_routes of
// this size and the programs that use them.
func things(s *scene, routes uint32) (out []string) {
	s.Helper()
	entries, err := os.ReadDir(pinDir(s.w.BPFFS))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Fatal(err)
	}
	for _, e := range entries {
		out = append(out, "pin "+e.Name())
	}
	own := map[ebpf.MapID]bool{}
	for id := ebpf.MapID(0); ; {
		id, err = ebpf.MapGetNextID(id)
		if err != nil {
			break
		}
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		if info, err := m.Info(); err == nil && info.Name == "sd_routes" && info.MaxEntries == routes {
			own[id] = true
			out = append(out, "map "+info.Name)
		}
		m.Close()
	}
	for id := ebpf.ProgramID(0); ; {
		id, err = ebpf.ProgramGetNextID(id)
		if err != nil {
			break
		}
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue
		}
		if info, err := p.Info(); err == nil {
			used, _ := info.MapIDs()
			if strings.HasPrefix(info.Name, "sd_") && slices.ContainsFunc(used, func(m ebpf.MapID) bool { return own[m] }) {
				out = append(out, "program "+info.Name)
			}
		}
		p.Close()
	}
	slices.Sort(out)
	return out
}

func TestASecondAgentIsRefused(t *testing.T) {
	s := newScene(t)
	s.start()
	_, err := Open(s.config())
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), s.w.BPFFS) {
		t.Errorf("with the same bpffs: got %v, want ErrRunning and where the lock is", err)
	}

	elsewhere := filepath.Join(t.TempDir(), "bpf")
	cfg := s.config()
	cfg.BPFFS = elsewhere
	_, err = Open(cfg)
	t.Cleanup(func() { s.must(unix.Unmount(elsewhere, 0)) })
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "sd_capture4") {
		t.Errorf("with another bpffs: got %v, want ErrRunning and what was found", err)
	}
	if err := Uninstall(s.w.BPFFS, nil); !errors.Is(err, ErrRunning) {
		t.Errorf("uninstall under a running agent: got %v, want ErrRunning", err)
	}
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
}

func TestAnAgentMayComeRightAfterAnotherWasKilled(t *testing.T) {
	was := patience
	patience = time.Minute // a busy machine takes its time to kill
	defer func() { patience = was }()
	s := newScene(t)
	a := s.spawn(s.config())
	go func() {
		time.Sleep(300 * time.Millisecond)
		a.cmd.Process.Kill()
	}()
	s.start()
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
}

func TestOtherPeoplesProgramsStay(t *testing.T) {
	s := newScene(t)
	others := map[string]ebpf.AttachType{
		"their_connect": ebpf.AttachCGroupInet4Connect,
		"their_sendmsg": ebpf.AttachCGroupUDP4Sendmsg,
		"their_getpeer": ebpf.AttachCgroupInet4GetPeername,
	}
	attachOthers := func() {
		for name, attach := range others {
			s.attachOther(name, attach, 1)
		}
	}
	attachOthers()
	check := func(when string) {
		t.Helper()
		for name := range others {
			if n := len(attached(s, name)); n != 2 {
				t.Fatalf("%s: %d of 2 programs %s are attached", when, n, name)
			}
		}
	}
	s.start()
	attachOthers() // before ours and after
	check("running")
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	s.must(s.k.Close())
	check("closed")
	a := s.spawn(s.config())
	check("restarted")
	a.kill()
	check("killed")
	theirs := filepath.Join(s.w.BPFFS, "theirs")
	s.must(os.Mkdir(theirs, 0o700))
	s.must(Uninstall(s.w.BPFFS, nil))
	check("uninstalled")
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("uninstall took what was not ours: %v", err)
	}
	s.must(Uninstall(s.w.BPFFS, nil)) // again: nothing to do
}

func TestUninstallLeavesForeignPinsInOurDirectory(t *testing.T) {
	s := newScene(t)
	s.start()
	s.must(s.k.Close())
	foreign := filepath.Join(pinDir(s.w.BPFFS), "theirs")
	s.must(os.Mkdir(foreign, 0o700))
	s.must(Uninstall(s.w.BPFFS, nil))
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("uninstall took what was not ours: %v", err)
	}
	entries, err := os.ReadDir(pinDir(s.w.BPFFS))
	s.must(err)
	if len(entries) != 1 {
		t.Errorf("uninstall left %v", entries)
	}
}

func TestADenialOfAnotherProgramIsKept(t *testing.T) {
	for _, inject := range []bool{false, true} {
		for _, ready := range []bool{false, true} {
			s := newScene(t)
			s.input.Pods[0].Inject = inject
			s.setReady(ready)
			s.attachOther("their_firewall", ebpf.AttachCGroupInet4Connect, 0)
			s.start()
			s.steer(s.tagged)
			s.mustCount("connect4", "denied_before", 1, func() {
				if err := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM).connect(at(webVIP4, 80)); err != unix.EPERM {
					t.Errorf("inject %v, ready %v: got %v, want the firewall's EPERM", inject, ready, err)
				}
			})
			s.must(s.w.Close())
		}
	}
}

func TestPinnedLinksFollowTheConfiguredCgroup(t *testing.T) {
	s := newScene(t)
	elsewhere, err := s.w.Subgroup("elsewhere")
	s.must(err)
	cfg := s.config()
	cfg.Cgroup = elsewhere
	s.spawn(cfg).kill()
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "baseline")

	s.start()
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	if res, err := queryNames(elsewhere, ebpf.AttachCGroupInet4Connect); err != nil || len(res) != 0 {
		t.Errorf("attached to the cgroup of before: %v, %v", res, err)
	}
}

func TestPinnedLinksWhoseCgroupIsGoneAreReplaced(t *testing.T) {
	s := newScene(t)
	elsewhere, err := s.w.Subgroup("elsewhere")
	s.must(err)
	cfg := s.config()
	cfg.Cgroup = elsewhere
	s.spawn(cfg).kill()
	s.must(os.Remove(elsewhere))
	s.must(os.Mkdir(elsewhere, 0o755)) // the same path, another cgroup
	k, err := Open(cfg)
	s.must(err)
	defer k.Close()
	s.compile()
	s.must(k.Apply(s.table))
	names, err := queryNames(elsewhere, ebpf.AttachCGroupInet4Connect)
	s.must(err)
	if !slices.Equal(names, []string{"sd_connect4", "sd_capture4"}) {
		t.Errorf("attached: %v", names)
	}

	// And while the agent runs.
	s.must(os.Remove(elsewhere))
	s.must(os.Mkdir(elsewhere, 0o755))
	s.must(k.RenewLease(time.Minute))
	names, err = queryNames(elsewhere, ebpf.AttachCGroupInet4Connect)
	s.must(err)
	if !slices.Equal(names, []string{"sd_connect4", "sd_capture4"}) {
		t.Errorf("attached after the cgroup was replaced: %v", names)
	}
}

func TestAStartThatFailsLeavesWhatIsInForce(t *testing.T) {
	s := newScene(t)
	s.spawn(s.config()).kill()
	cfg := s.config()
	cfg.MaxDestinations = 1
	k, err := Open(cfg)
	s.must(err)
	s.compile()
	if err := k.Apply(s.table); err == nil {
		t.Error("a table that does not fit was applied")
	}
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
	s.must(k.Close())
	s.tagged.MustReach("tcp4", at(webVIP4, 80), "fork")
}

func TestADamagedSetIsReplacedWhole(t *testing.T) {
	s := newScene(t)
	s.start()
	r := s.steer(s.other)
	dst := at(webVIP4, 80)
	open := s.socket(s.other, unix.AF_INET, unix.SOCK_STREAM).mustConnect(dst).mustHear("router")
	r.mustHaveCaptured(s, dst)
	counted := s.count("capture4", "captured")

	// As a write that fails half-way leaves it.
	for range 2 {
		s.k.damaged = true
		s.must(s.k.objs.maps["sd_routes"].Delete(firstKey(s, "sd_routes")))
		s.apply()
		s.tagged.MustReach("tcp4", dst, "fork")
		s.other.MustReach("tcp4", dst, "router")
		r.mustHaveCaptured(s, dst)
		counted++
	}
	open.mustShowPeer(dst)
	if got := s.count("capture4", "captured"); got != counted {
		t.Errorf("captured is counted %d times, want %d: counters live on", got, counted)
	}
	for _, name := range []string{"sd_connect4", "sd_capture4"} {
		if n := len(attached(s, name)); n != 1 {
			t.Errorf("%d programs %s are attached, want 1", n, name)
		}
	}
}

func firstKey(s *scene, name string) []byte {
	s.Helper()
	key, err := s.k.objs.maps[name].NextKeyBytes(nil)
	s.must(err)
	return key
}

func TestCloseIsSafeTwiceAndEverythingAfterItIsAnError(t *testing.T) {
	s := newScene(t)
	s.start()
	s.must(s.k.Close())
	s.must(s.k.Close())
	if err := s.k.Apply(s.table); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Apply: %v", err)
	}
	if _, ok := s.k.V6OnlyDest(1); ok {
		t.Error("V6OnlyDest knows something")
	}
	if err := s.k.RenewLease(time.Minute); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("RenewLease: %v", err)
	}
}

func TestADrainingAgentTakesChangesButCapturesNothing(t *testing.T) {
	s := newScene(t)
	s.start()
	s.steer(s.other)
	s.must(s.k.DetachCapture())
	s.setReady(false)
	s.apply()
	s.other.MustReach("tcp4", at(webVIP4, 80), "baseline")
	c := s.socket(s.tagged, unix.AF_INET, unix.SOCK_STREAM)
	c.mustRefuse(c.connect(at(webVIP4, 80)))
	s.must(s.k.DetachCapture())
}

// attachOther attaches a program that is not ours to the world's cgroup for as
// long as the test lasts.
func (s *scene) attachOther(name string, attach ebpf.AttachType, verdict int32) {
	s.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.CGroupSockAddr, AttachType: attach, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	})
	s.must(err)
	defer p.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: s.w.Cgroup, Attach: attach, Program: p})
	s.must(err)
	s.Cleanup(func() { l.Close() })
}

// attached returns the ids of the programs of this name at the world's cgroup.
func attached(s *scene, name string) (ids []ebpf.ProgramID) {
	s.Helper()
	dir, err := os.Open(s.w.Cgroup)
	s.must(err)
	defer dir.Close()
	for _, a := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCgroupInet4GetPeername,
	} {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: a})
		s.must(err)
		for _, p := range res.Programs {
			if programName(p.ID) == name {
				ids = append(ids, p.ID)
			}
		}
	}
	return ids
}

// queryNames returns the names of the programs attached to a cgroup, in the
// order in which they run.
func queryNames(cgroup string, attach ebpf.AttachType) (names []string, err error) {
	dir, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()), Attach: attach})
	if err != nil {
		return nil, err
	}
	for _, p := range res.Programs {
		names = append(names, programName(p.ID))
	}
	return names, nil
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
