// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/sidetrack-dev/sidetrack/bpf"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// asker runs the kernel's lookup against a Kernel's maps.
type asker struct {
	*testing.T
	program *ebpf.Program
}

func newAsker(t *testing.T, k *Kernel) *asker {
	t.Helper()
	spec, err := k.cfg.spec()
	if err != nil {
		t.Fatal(err)
	}
	for name := range spec.Programs {
		if name != bpf.SdProgSdLookupTest {
			delete(spec.Programs, name)
		}
	}
	keep := map[string]*ebpf.Map{}
	for name := range tableMaps {
		keep[name] = k.objs.maps[name]
	}
	o, err := loadSpec(spec, keep)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	return &asker{t, o.programs[bpf.SdProgSdLookupTest]}
}

// ask returns the kernel's answer, in routing's words.
func (a *asker) ask(source routing.Cookie, dst netip.AddrPort, p routing.Protocol, pick uint32, mappedOK bool) (routing.FlowAnswer, bpf.SdReason) {
	a.Helper()
	var test bpf.SdLookupTest
	q := &test.Question
	q.Source, q.Pick = uint64(source), pick
	q.Dst = bpfDestKey(routing.DestKey{Addr: dst.Addr(), Port: dst.Port(), Protocol: p})
	if mappedOK {
		q.MappedOk = 1
	}
	if _, err := a.program.Run(&ebpf.RunOptions{Context: test, ContextOut: &test}); err != nil {
		a.Fatal(err)
	}
	r := &test.Answer
	got := routing.FlowAnswer{Sandbox: routing.SandboxID(r.Sandbox), Class: routing.ClassID(r.Class)}
	switch r.Verdict {
	case bpf.SdVerdictVERDICT_BASELINE:
		got.Verdict = routing.ToBaseline
	case bpf.SdVerdictVERDICT_FORK:
		got.Verdict = routing.ToFork
		got.Endpoint = []netip.AddrPort{goAddrPort(r.Endpoint.Addr, r.Endpoint.Port)}
	case bpf.SdVerdictVERDICT_REFUSE:
		got.Verdict = routing.Refuse
	default:
		a.Fatalf("verdict %d", r.Verdict)
	}
	var ok bool
	if got.Reason, ok = map[bpf.SdReason]routing.Reason{
		bpf.SdReasonREASON_UNTAGGED:     routing.Untagged,
		bpf.SdReasonREASON_UNKNOWN_DEST: routing.UnknownDest,
		bpf.SdReasonREASON_NO_REDIRECT:  routing.NoRedirect,
		bpf.SdReasonREASON_REDIRECTED:   routing.Redirected,
		bpf.SdReasonREASON_REFUSED:      routing.Unavailable,
		bpf.SdReasonREASON_BASELINE:     routing.Unavailable,
	}[r.Reason]; !ok {
		a.Fatalf("reason %d", r.Reason)
	}
	return got, r.Reason
}

// check compares the kernel's answer with the table's.
func (a *asker) check(t *routing.Table, source routing.Cookie, dst netip.AddrPort, p routing.Protocol, pick uint32) {
	a.Helper()
	want := t.LookupFlow(source, dst, p)
	got, _ := a.ask(source, dst, p, pick, true)
	same := got.Verdict == want.Verdict && got.Reason == want.Reason && got.Sandbox == want.Sandbox && got.Class == want.Class
	if same && want.Verdict == routing.ToFork {
		same = got.Endpoint[0] == want.Endpoint[int(pick%uint32(len(want.Endpoint)))]
	}
	if !same {
		a.Fatalf("source %d, destination %v/%v, pick %d: the kernel says %+v, the table %+v", source, dst, p, pick, got, want)
	}
	// A socket that cannot reach IPv4 by IPv6 gets the same, but for that.
	if dst.Addr().Unmap().Is4() {
		return
	}
	strict, _ := a.ask(source, dst, p, pick, false)
	switch {
	case want.Verdict != routing.ToFork || want.Endpoint[0].Addr().Is6():
		if strict.Verdict != got.Verdict || !slices.Equal(strict.Endpoint, got.Endpoint) {
			a.Fatalf("an IPv6-only socket to %v gets %+v, others %+v", dst, strict, got)
		}
	case strict.Reason != routing.Unavailable:
		a.Fatalf("an IPv6-only socket to %v gets %+v though the fork has only %v", dst, strict, want.Endpoint)
	}
}

func TestTheKernelAndTheTableAgree(t *testing.T) {
	w := lab.New(t)
	cfg := DefaultConfig()
	cfg.Cgroup, cfg.BPFFS = w.Cgroup, w.BPFFS
	cfg.MaxFlowRoutes, cfg.MaxDestinations, cfg.MaxBackends, cfg.MaxIdentities = 4096, 4096, 4096, 4096
	k, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	a := newAsker(t, k)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	d := dice{rand.New(rand.NewPCG(seed, 0))}
	var table *routing.Table
	answers := map[routing.Reason]int{}
	for range slowly(60, 8) {
		// The same objects change from one table to the next, and the kernel's maps
		// by a diff.
		table, _ = routing.Compile(d.input(), table)
		if err := k.Apply(table); err != nil {
			t.Fatal(err)
		}
		for range 400 {
			source, dst, p := routing.Cookie(d.IntN(12)), netip.AddrPortFrom(d.addr(), uint16(80+d.IntN(4))), d.protocol()
			a.check(table, source, dst, p, d.Uint32())
			answers[table.LookupFlow(source, dst, p).Reason]++
		}
		if s, in := table.Size(), k.objs.maps[bpf.SdMapSdRoutes]; s.Routes != entries(t, in) {
			t.Fatalf("the kernel has %d routes, the table %d", entries(t, in), s.Routes)
		}
		if s, in := table.Size(), k.objs.maps[bpf.SdMapSdBackends]; s.Backends != entries(t, in) {
			t.Fatalf("the kernel has %d endpoints, the table %d", entries(t, in), s.Backends)
		}
	}
	for _, r := range []routing.Reason{routing.Untagged, routing.UnknownDest, routing.NoRedirect, routing.Redirected, routing.Unavailable} {
		if answers[r] == 0 {
			t.Errorf("no question was answered %v: %v", r, answers)
		}
	}
}

func entries(t *testing.T, m *ebpf.Map) (n int) {
	t.Helper()
	var key, value []byte
	it := m.Iterate()
	for it.Next(&key, &value) {
		n++
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// dice makes small random clusters in which everything meets everything.
type dice struct{ *rand.Rand }

func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

func (d dice) addr() netip.Addr {
	a := netip.AddrFrom4([4]byte{10, 0, 0, byte(d.IntN(10))})
	switch d.IntN(3) {
	case 0:
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(d.IntN(10))})
	case 1:
		return netip.AddrFrom16(a.As16()) // mapped
	}
	return a
}

func (d dice) protocol() routing.Protocol {
	if d.chance(50) {
		return routing.TCP
	}
	return routing.UDP
}

func (d dice) input() (in routing.Input) {
	name := func(s string) routing.Name { return routing.Name{Namespace: "ns", Name: s} }
	services := []string{"a", "b", "c", "d"}
	for _, s := range services {
		if d.chance(10) {
			continue
		}
		svc := routing.Service{Name: name(s)}
		for range d.IntN(3) {
			svc.Addresses = append(svc.Addresses, d.addr().Unmap())
		}
		sl := routing.EndpointSlice{Name: name(s + "-1"), Service: s}
		for i, p := range []string{"x", "y"} {
			protocol := d.protocol()
			svc.Ports = append(svc.Ports, routing.ServicePort{Name: p, Port: uint16(80 + i), Protocol: protocol})
			sl.Ports = append(sl.Ports, routing.EndpointPort{Name: p, Port: uint16(80 + d.IntN(4)), Protocol: protocol})
		}
		for range d.IntN(4) {
			sl.Endpoints = append(sl.Endpoints, routing.Endpoint{Addr: d.addr().Unmap(), Ready: d.chance(70)})
		}
		in.Services, in.Slices = append(in.Services, svc), append(in.Slices, sl)
	}
	for _, s := range []string{"p", "q", "r"} {
		if d.chance(20) {
			continue
		}
		box := routing.Sandbox{Name: name(s), Key: "key-of-sandbox-" + s}
		for _, from := range services {
			if d.chance(40) {
				continue
			}
			r := routing.Redirect{From: routing.ServiceRef{Service: from}, Field: "spec.redirects"}
			if d.chance(50) {
				r.From.Port = []string{"x", "y"}[d.IntN(2)]
			}
			if d.chance(70) {
				r.To = routing.Target{Service: services[d.IntN(len(services))]}
			} else {
				r.To = routing.Target{Address: d.addr().Unmap(), Port: "8080"}
			}
			if d.chance(40) {
				r.Unavailable = routing.Baseline
			}
			box.Redirects = append(box.Redirects, r)
		}
		in.Sandboxes = append(in.Sandboxes, box)
	}
	for c := range routing.Cookie(12) {
		in.Pods = append(in.Pods, routing.Pod{
			Name: name(string(rune('A' + c))), Netns: c,
			Sandbox: []string{"", "p", "q", "r", "gone"}[d.IntN(5)], Inject: d.chance(30),
		})
	}
	return in
}
