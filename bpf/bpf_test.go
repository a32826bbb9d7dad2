// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

func load(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := LoadSd()
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestNamesFitTheKernelAndHaveOurPrefix(t *testing.T) {
	spec := load(t)
	names := slices.Collect(maps.Keys(spec.Programs))
	for name, m := range spec.Maps {
		if name == ".rodata" {
			continue // the loader gives it a name
		}
		names = append(names, name)
		if m.Name != name {
			t.Errorf("map %s is called %s in the kernel", name, m.Name)
		}
	}
	for _, n := range names {
		// BPF_OBJ_NAME_LEN is 16, with the zero at the end. bpffs allows no dots.
		if len(n) > 15 || !strings.HasPrefix(n, "sd_") || strings.Contains(n, ".") {
			t.Errorf("%q: want sd_ and at most 15 characters", n)
		}
	}
}

func TestProgramsAreDualLicensed(t *testing.T) {
	for name, p := range load(t).Programs {
		if p.License != "Dual BSD/GPL" {
			t.Errorf("%s: %q", name, p.License)
		}
	}
}

func TestTheObjectTellsNothingOfWhereItWasBuilt(t *testing.T) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(_SdBytes, []byte(dir)) {
		t.Errorf("the object contains %s: it would be another one elsewhere", dir)
	}
}

//go:embed testdata/instructions.golden
var instructionsGolden string

// What a program costs each connection must not grow unnoticed.
func TestInstructionCountsAreKnown(t *testing.T) {
	var b strings.Builder
	programs := load(t).Programs
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		fmt.Fprintf(&b, "%s %d\n", name, len(programs[name].Instructions))
	}
	if *update {
		if err := os.WriteFile("testdata/instructions.golden", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(instructionsGolden, b.String()); diff != "" {
		t.Errorf("instructions of each program (-want +got); if that is meant, run with -update:\n%s", diff)
	}
}

func TestTheVerifierHasAnEasyTime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loading programs takes root")
	}
	spec := load(t)
	spec.Maps[SdMapSdUdpPeers].MaxEntries = 64
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer coll.Close()
	for name, p := range coll.Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if !ok {
			t.Fatalf("%s: this kernel does not say what it verified", name)
		}
		t.Logf("%s: %d instructions verified", name, n)
		// The kernel gives up at a million; other kernels may need several times what
		// this one does.
		if n > 50_000 {
			t.Errorf("%s: %d instructions verified, want at most 50000", name, n)
		}
	}
}
