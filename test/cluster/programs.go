// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ProgramsEnv names a folder that already holds the cluster's programs; nothing
// is built then.
const ProgramsEnv = "SIDETRACK_CLUSTER_PROGRAMS"

// module is one of the modules below programs/ that pin what is built.
type module struct {
	name     string
	require  string   // the module whose version is the programs' version
	packages []string // below require, or whole paths
	args     []string
	ldflags  func(version string) string
}

func strip(string) string { return "-s -w" }

// Those who only want a control plane wait for the first two modules only.
var modules = []module{
	{
		name:     "etcd",
		require:  "go.etcd.io/etcd/server/v3",
		packages: []string{"go.etcd.io/etcd/server/v3"},
		ldflags:  strip,
	},
	{
		name:    "kubernetes",
		require: "k8s.io/kubernetes",
		packages: []string{
			"k8s.io/kubernetes/cmd/kube-apiserver",
			"k8s.io/kubernetes/cmd/kubectl",
			"k8s.io/kubernetes/cmd/kube-controller-manager",
			"k8s.io/kubernetes/cmd/kube-scheduler",
			"k8s.io/kubernetes/cmd/kubelet",
			"k8s.io/kubernetes/cmd/kube-proxy",
		},
		// Without its version a server says it is 0.0.0, and clients believe it.
		ldflags: func(version string) string {
			parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
			flags := []string{"-s -w"}
			for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
				flags = append(flags, "-X "+pkg+".gitVersion="+version, "-X "+pkg+".gitTreeState=clean",
					"-X "+pkg+".gitMajor="+parts[0], "-X "+pkg+".gitMinor="+parts[1])
			}
			return strings.Join(flags, " ")
		},
	},
	{
		name:    "runtime",
		require: "github.com/containerd/containerd/v2",
		packages: []string{
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr",
			"github.com/containernetworking/plugins/plugins/ipam/host-local",
			"github.com/containernetworking/plugins/plugins/main/ptp",
			"github.com/containernetworking/plugins/plugins/main/loopback",
		},
		args:    []string{"-tags", "no_btrfs,no_zfs,no_devmapper"},
		ldflags: strip,
	},
}

// planePrograms are what a control plane without nodes needs.
var planePrograms = []string{"etcd", "kube-apiserver", "kubectl"}

// program is the file name of a package's program.
func program(pkg string) string {
	if pkg == "go.etcd.io/etcd/server/v3" {
		return "etcd"
	}
	return filepath.Base(pkg)
}

// Programs returns the folder of the cluster's programs. What the cache lacks is
// built first, which takes a quarter of an hour of CPU time: names limits it to
// the programs that are needed, and none means all of them. Other processes that
// want the same wait for it.
func Programs(ctx context.Context, names ...string) (string, error) {
	if dir := os.Getenv(ProgramsEnv); dir != "" {
		for _, m := range modules {
			for _, pkg := range m.packages {
				if name := program(pkg); len(names) == 0 || slices.Contains(names, name) {
					if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
						return "", fmt.Errorf("find the programs in $%s: %w", ProgramsEnv, err)
					}
				}
			}
		}
		return dir, nil
	}
	source, err := sourceDir(ctx)
	if err != nil {
		return "", err
	}
	versions := make([]string, len(modules))
	key := ""
	for i, m := range modules {
		if versions[i], err = required(filepath.Join(source, "programs", m.name, "go.mod"), m.require); err != nil {
			return "", err
		}
		key += m.name + "-" + versions[i] + "_"
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	dir := filepath.Join(user, "sidetrack", "cluster", key+runtime.GOARCH)
	for i, m := range modules {
		for _, pkg := range m.packages {
			name := program(pkg)
			if len(names) > 0 && !slices.Contains(names, name) {
				continue
			}
			if err := buildOnce(ctx, dir, name, filepath.Join(source, "programs", m.name), m, versions[i], pkg); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
}

// sourceDir is the folder of this package in the checkout.
var sourceDir = func() func(context.Context) (string, error) {
	var mu sync.Mutex
	var known string
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != "" {
			return known, nil
		}
		out, err := output(ctx, exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/sidetrack-dev/sidetrack"))
		if err != nil {
			return "", fmt.Errorf("find the checkout: %w", err)
		}
		known = filepath.Join(strings.TrimSpace(string(out)), "test", "cluster")
		return known, nil
	}
}()

// required returns the version of a module that a go.mod requires.
func required(file, path string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("find the version of %s: %w", path, err)
	}
	m := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(path) + `\s+(v\S+)`).FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("%s does not require %s", file, path)
	}
	return string(m[1]), nil
}

func buildOnce(ctx context.Context, dir, name, in string, m module, version, pkg string) error {
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the cache of programs: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "."+name+".lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock the cache of programs: %w", err)
	}
	defer lock.Close()
	for unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for another process that builds %s: %w", name, ctx.Err())
		}
	}
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "cluster: building %s %s\n", name, version)
	began := time.Now()
	unfinished := file + ".unfinished"
	args := append([]string{"build", "-trimpath", "-ldflags", m.ldflags(version), "-o", unfinished}, m.args...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = in
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if _, err := output(ctx, cmd); err != nil {
		return fmt.Errorf("build %s: %w", name, err)
	}
	if err := os.Rename(unfinished, file); err != nil {
		return fmt.Errorf("keep %s: %w", name, err)
	}
	fmt.Fprintf(os.Stderr, "cluster: built %s in %.0f s\n", name, time.Since(began).Seconds())
	return nil
}

// output runs a command and returns its standard output; the error has the end
// of its standard error.
func output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	said := strings.TrimSpace(stderr.String())
	if len(said) > 2000 {
		said = "…" + said[len(said)-2000:]
	}
	if said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return stdout.Bytes(), fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
}
