// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

func TestThisKernelCanRunTheAgent(t *testing.T) {
	w := lab.New(t)
	cfg := DefaultConfig()
	cfg.BPFFS = w.BPFFS
	for _, l := range Check(cfg) {
		t.Logf("%s: %v: %s", l.Name, l.OK, l.Detail)
		if !l.OK {
			t.Errorf("%s: %s; %s", l.Name, l.Detail, l.Remedy)
		}
		if l.OK != (l.Remedy == "") || l.Detail == "" {
			t.Errorf("%s: a line has a detail, and a remedy exactly when there is something to remedy: %+v", l.Name, l)
		}
	}
}

func TestCheckSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	lab.New(t)
	cfg := DefaultConfig()
	cfg.Cgroup = t.TempDir()
	cfg.BPFFS = t.TempDir()
	if err := os.WriteFile(filepath.Join(cfg.BPFFS, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"cgroup v2": "--cgroup", "BPF file system": "--bpffs"} {
		i := slices.IndexFunc(Check(cfg), func(l CheckLine) bool { return l.Name == name })
		if l := Check(cfg)[i]; l.OK || !strings.Contains(l.Remedy, want) {
			t.Errorf("%+v: want it to fail and to name %s", l, want)
		}
	}
	if _, err := Open(cfg); err == nil {
		t.Error("Open works without a cgroup")
	}
	cfg.Cgroup = ""
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "--bpffs") {
		t.Errorf("Open mounts over somebody's files: %v", err)
	}
	cfg.BPFFS, cfg.NoMount = t.TempDir(), true
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "mount one on the host") {
		t.Errorf("Open mounts where what it mounts would not last: %v", err)
	}
}

func TestSettingsThatCannotWorkAreNamed(t *testing.T) {
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the default: %v", err)
	}
	err := Config{MaxDestinations: 1 << 24}.Validate()
	for _, want := range []string{
		"bpffs", "mark", "--max-flow-routes", "--max-destinations", "--max-backends", "--max-identities", "--max-namespaces", "--max-udp-peers",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named: %v", want, err)
		}
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("Open takes an empty Config")
	}
}

func TestCgroup2IsFoundInTheMountTable(t *testing.T) {
	const (
		v1     = "30 24 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n"
		hybrid = "31 24 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		part   = "32 24 0:27 /kubepods/pod1 /run/pod\\040cgroup rw - cgroup2 none rw\n"
		// In a container with a cgroup namespace of its own.
		own  = "33 24 0:27 / /sys/fs/cgroup ro - cgroup2 none rw\n"
		host = "34 24 0:27 /../../.. /host/cgroup ro - cgroup2 none rw\n"
	)
	for table, want := range map[string]string{
		v1:                 "",
		v1 + hybrid:        "/sys/fs/cgroup/unified",
		part + v1 + hybrid: "/sys/fs/cgroup/unified",
		part:               "/run/pod cgroup",
		own + part + host:  "/host/cgroup",
		host + own:         "/host/cgroup",
		"nonsense\n":       "",
	} {
		got, err := parseCgroup2Root(strings.NewReader(table))
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", table, got, err, want)
		}
	}
}
