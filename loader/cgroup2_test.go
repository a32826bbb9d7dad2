// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// withoutEnv makes the test binary look for cgroup2 where it is mounted nowhere: it
// is started in a mount namespace of its own for that.
const withoutEnv = "SIDETRACK_TEST_WITHOUT_CGROUP2"

func init() {
	if os.Getenv(withoutEnv) == "" {
		return
	}
	if err := lookWithoutCgroup2(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

func lookWithoutCgroup2() error {
	for {
		dir, err := cgroup2Root()
		if errors.Is(err, errNoCgroup2) {
			break
		}
		if err != nil {
			return err
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
	}
	root, err := openCgroup2()
	if err != nil {
		return err
	}
	defer root.Close()
	// Every process is there; the kernel's first ones never leave.
	procs, err := os.ReadFile(pathOf(root) + "/cgroup.procs")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(procs), "1\n") && !strings.Contains(string(procs), "\n2\n") {
		return fmt.Errorf("it is not the root: its processes are %q", procs)
	}
	if detail, err := (Config{}).checkCgroup(); err != nil || !strings.Contains(detail, "nowhere") {
		return fmt.Errorf("check says %q, %v", detail, err)
	}
	return nil
}

func TestWithoutAMountOfCgroup2TheRootIsHadAllTheSame(t *testing.T) {
	lab.New(t) // asks for root
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), withoutEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
