// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"

	"github.com/sidetrack-dev/sidetrack/bpf"
)

// program is one of ours and where it attaches.
type program struct {
	name   string // in the kernel; for flow programs also their link's pin
	attach ebpf.AttachType
	first  bool // of all programs of its cgroup and hook, where the kernel can
}

// flowPrograms in the order in which they are attached: what shows applications
// the addresses that they dialled is there before anything is redirected.
var flowPrograms = []program{
	{bpf.SdProgSdGetpeer4, ebpf.AttachCgroupInet4GetPeername, true},
	{bpf.SdProgSdGetpeer6, ebpf.AttachCgroupInet6GetPeername, true},
	{bpf.SdProgSdRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg, true},
	{bpf.SdProgSdRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg, true},
	{bpf.SdProgSdSendmsg4, ebpf.AttachCGroupUDP4Sendmsg, false},
	{bpf.SdProgSdSendmsg6, ebpf.AttachCGroupUDP6Sendmsg, false},
	{bpf.SdProgSdConnect4, ebpf.AttachCGroupInet4Connect, false},
	{bpf.SdProgSdConnect6, ebpf.AttachCGroupInet6Connect, false},
}

var capturePrograms = []program{
	{bpf.SdProgSdCapture4, ebpf.AttachCGroupInet4Connect, false},
	{bpf.SdProgSdCapture6, ebpf.AttachCGroupInet6Connect, false},
}

// mapNames are all maps of a set, each pinned by its name.
var mapNames = []string{
	bpf.SdMapSdBackends, bpf.SdMapSdDests, bpf.SdMapSdDialled, bpf.SdMapSdEvents, bpf.SdMapSdExits, bpf.SdMapSdHits,
	bpf.SdMapSdIdentities, bpf.SdMapSdLease, bpf.SdMapSdNamespaces, bpf.SdMapSdRoutes, bpf.SdMapSdTold, bpf.SdMapSdUdpPeers,
	bpf.SdMapSdUntold, bpf.SdMapSdV6only,
}

// tableMaps are the maps that routing.Table.Diff writes. All others keep what is
// in them when an agent has to start again from a fresh set.
var tableMaps = map[string]bool{
	bpf.SdMapSdBackends: true, bpf.SdMapSdDests: true, bpf.SdMapSdRoutes: true, bpf.SdMapSdIdentities: true,
}

// inherited are the maps taken over from an earlier agent: open sockets need
// them to be shown the addresses that they dialled.
var inherited = []string{bpf.SdMapSdDialled, bpf.SdMapSdUdpPeers}

// rodata is where the compiler puts the programs' settings. It has no name of
// ours in the object, but gets one in the kernel.
const rodata, rodataName = ".rodata", "sd_rodata"

// objects are one loaded set of maps and programs.
type objects struct {
	maps     map[string]*ebpf.Map
	programs map[string]*ebpf.Program
	pinned   bool // the maps are
}

// spec returns what is to be loaded: all that cfg sets is set.
func (c Config) spec() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadSd()
	if err != nil {
		return nil, fmt.Errorf("read the BPF object: %w", err)
	}
	for name, size := range map[string]uint32{
		bpf.SdMapSdRoutes:     c.MaxFlowRoutes,
		bpf.SdMapSdDests:      c.MaxDestinations,
		bpf.SdMapSdBackends:   c.MaxBackends,
		bpf.SdMapSdIdentities: c.MaxIdentities,
		bpf.SdMapSdNamespaces: c.MaxNamespaces,
		bpf.SdMapSdUdpPeers:   c.MaxUDPPeers,
	} {
		spec.Maps[name].MaxEntries = size
	}
	if err := spec.Variables[bpf.SdVarAgentMark].Set(c.Mark); err != nil {
		return nil, fmt.Errorf("set the mark: %w", err)
	}
	if c.HostPods {
		cookie, err := ownNetns()
		if err != nil {
			return nil, fmt.Errorf("find the host's network namespace: %w", err)
		}
		if err := spec.Variables[bpf.SdVarHostNetns].Set(cookie); err != nil {
			return nil, fmt.Errorf("set the host's network namespace: %w", err)
		}
	}
	spec.Maps[rodata].Name = rodataName
	return spec, nil
}

// load loads a set. Maps in keep are used instead of new ones; they stay the
// caller's.
func (c Config) load(keep map[string]*ebpf.Map) (*objects, error) {
	spec, err := c.spec()
	if err != nil {
		return nil, err
	}
	delete(spec.Programs, bpf.SdProgSdLookupTest)
	// They are loaded once for each loop of the router: see syns.go.
	delete(spec.Programs, bpf.SdProgSdHold)
	delete(spec.Maps, bpf.SdMapSdSyns)
	delete(spec.Maps, bpf.SdMapSdSynBudgets)
	return loadSpec(spec, keep)
}

func loadSpec(spec *ebpf.CollectionSpec, keep map[string]*ebpf.Map) (*objects, error) {
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: keep})
	var rejected *ebpf.VerifierError
	if errors.As(err, &rejected) {
		// Only with %+v is the verifier's log whole.
		return nil, fmt.Errorf("load the BPF programs: %w\n%+v", err, rejected)
	}
	if err != nil {
		return nil, fmt.Errorf("load the BPF programs: %w", err)
	}
	return &objects{maps: coll.Maps, programs: coll.Programs}, nil
}

// kept returns the maps of o that hold more than a table.
func (o *objects) kept() map[string]*ebpf.Map {
	keep := map[string]*ebpf.Map{}
	for name, m := range o.maps {
		if !tableMaps[name] && name != rodata {
			keep[name] = m
		}
	}
	return keep
}

// inheritedMaps opens the pinned maps of an earlier agent that fit spec.
func inheritedMaps(dir string, spec *ebpf.CollectionSpec) (keep map[string]*ebpf.Map, unfit []string) {
	keep = map[string]*ebpf.Map{}
	for _, name := range inherited {
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if err != nil {
			continue // there is none: the first start
		}
		if err := spec.Maps[name].Compatible(m); err != nil {
			m.Close()
			unfit = append(unfit, name)
			continue
		}
		keep[name] = m
	}
	return keep, unfit
}

// closeTable closes all of o but the maps that kept returns.
func (o *objects) closeTable() error {
	var errs []error
	for _, p := range o.programs {
		errs = append(errs, p.Close())
	}
	for name, m := range o.maps {
		if tableMaps[name] || name == rodata {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Close closes all of o; what is attached or pinned stays.
func (o *objects) Close() error {
	errs := []error{o.closeTable()}
	for _, m := range o.kept() {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
