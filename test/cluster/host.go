// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a cluster makes outside its own folder. The names are fixed: there is
// one cluster, and what a killed run has left must be found.
const (
	// The second node's namespace, and the link to it from the host.
	secondNetns = "sidetrack-n2"
	hostLink    = "sidetrack-n2"
	// The cgroup of all programs that are no pods, and below cgroupRoots the pods'.
	programsCgroup = "sidetrack-cluster"
)

// cgroupRoots are the nodes' roots, in every hierarchy.
var cgroupRoots = []string{"", "n2"}

// nodeAddress is the address of a node in the network of nodes.
func nodeAddress(i int) string { return fmt.Sprintf("172.31.0.%d", i+1) }

// podSubnet is where a node's pods have their addresses.
func podSubnet(i int) string { return fmt.Sprintf("10.244.%d.0/24", i+1) }

func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, exec.CommandContext(ctx, name, args...))
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// buildNetwork makes the second node's namespace, a link to it, and routes from
// each node's pods to the other's.
func buildNetwork(ctx context.Context) error {
	inside := []string{"netns", "exec", secondNetns}
	in := func(args ...string) []string { return append(inside[:3:3], args...) }
	for _, args := range [][]string{
		{"netns", "add", secondNetns},
		{"link", "add", hostLink, "type", "veth", "peer", "name", "eth0", "netns", secondNetns},
		{"address", "add", nodeAddress(0) + "/24", "dev", hostLink},
		{"link", "set", hostLink, "up"},
		{"-n", secondNetns, "address", "add", nodeAddress(1) + "/24", "dev", "eth0"},
		{"-n", secondNetns, "link", "set", "lo", "up"},
		{"-n", secondNetns, "link", "set", "eth0", "up"},
		// Without a route a Service's address is unreachable before kube-proxy sees it.
		{"-n", secondNetns, "route", "add", "default", "via", nodeAddress(0)},
		{"route", "add", podSubnet(1), "via", nodeAddress(1)},
		in("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"),
	} {
		if err := run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return writeSetting("net/ipv4/ip_forward", "1")
}

func readSetting(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	if err != nil {
		return "", fmt.Errorf("read the setting %s: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func writeSetting(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("change the setting %s: %w", name, err)
	}
	return nil
}

// hierarchies returns where each cgroup hierarchy is mounted: all of version 1,
// if there are any, and version 2.
func hierarchies() (v1 []string, v2 string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, "", fmt.Errorf("find the cgroups: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if len(fields) < 5 {
			continue
		}
		switch {
		case strings.HasPrefix(after, "cgroup2 ") && v2 == "":
			v2 = fields[4]
		case strings.HasPrefix(after, "cgroup "):
			v1 = append(v1, fields[4])
		}
	}
	if v2 == "" {
		return nil, "", errors.New("cgroup2 is not mounted")
	}
	return v1, v2, nil
}

// noKubelet refuses a machine whose own kubelet has pods: the first node's are at
// the same place, and are killed there when the cluster ends.
func noKubelet() error {
	v1, v2, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range append(v1, v2) {
		dir := filepath.Join(h, "kubepods")
		if _, err := os.Stat(dir); err == nil {
			return fmt.Errorf("this machine is a Kubernetes node already, or was: there is %s; use another machine, or remove it when it is empty", dir)
		}
	}
	return nil
}

// ownCgroup makes the cgroup of the cluster's programs.
func ownCgroup() (string, error) {
	_, v2, err := hierarchies()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(v2, programsCgroup)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cluster's cgroup: %w", err)
	}
	return dir, nil
}

// makeCgroupRoot makes a node's root in every hierarchy. The kubelet wants it to
// be there.
func makeCgroupRoot(name string) error {
	v1, v2, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range append(v1, v2) {
		dir := filepath.Join(h, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a node's cgroup: %w", err)
		}
		// A cpuset of version 1 that is empty takes no process.
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(h, f)); err == nil {
				if err := os.WriteFile(filepath.Join(dir, f), b, 0); err != nil {
					return fmt.Errorf("fill the cpuset of a node's cgroup: %w", err)
				}
			}
		}
	}
	return nil
}

// clean removes everything that a cluster may have made. What is not there is
// no error.
func clean() error {
	s, err := readState()
	if errors.Is(err, fs.ErrNotExist) {
		// It is written before anything is made: there is no cluster, and a kubelet's
		// cgroups are another's.
		return nil
	}
	v1, v2, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	// The programs first: they would start pods again.
	doomed := []string{programsCgroup}
	for _, root := range cgroupRoots {
		if root == "" {
			root = "kubepods"
		}
		doomed = append(doomed, root)
	}
	for _, name := range doomed {
		errs = append(errs, killCgroup(filepath.Join(v2, name)))
	}
	for _, h := range append(v1, v2) {
		for _, name := range doomed {
			errs = append(errs, removeCgroup(filepath.Join(h, name)))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := os.Stat(filepath.Join("/sys/class/net", hostLink)); err == nil {
		errs = append(errs, run(ctx, "ip", "link", "delete", hostLink))
	}
	if _, err := os.Stat(filepath.Join("/run/netns", secondNetns)); err == nil {
		errs = append(errs, run(ctx, "ip", "netns", "delete", secondNetns))
	}
	if s != nil {
		errs = append(errs, removeProxyRules(ctx, s))
		if s.Forwarding != "" {
			errs = append(errs, writeSetting("net/ipv4/ip_forward", s.Forwarding))
		}
	}
	if err := errors.Join(errs...); err != nil {
		// The folder stays, so that the next attempt knows that there is something.
		return err
	}
	if err := os.RemoveAll(Dir()); err != nil {
		return fmt.Errorf("remove the cluster's folder: %w", err)
	}
	return nil
}

// removeProxyRules removes what kube-proxy has put into the host's own
// namespace.
func removeProxyRules(ctx context.Context, s *state) error {
	if s.ProxyMode == "iptables" {
		// Its chains are many and in tables that others use too: it knows them.
		return run(ctx, filepath.Join(s.Programs, "kube-proxy"), "--cleanup", "--v=0")
	}
	out, err := output(ctx, exec.CommandContext(ctx, "nft", "list", "tables"))
	if err != nil {
		return fmt.Errorf("list nft's tables: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "kube-proxy" {
			if err := run(ctx, "nft", "delete", "table", f[1], f[2]); err != nil {
				return err
			}
		}
	}
	return nil
}

// killCgroup kills everything in a cgroup2 and below, and waits for its end.
func killCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill what is in cgroup %s: %w", dir, err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil || strings.Contains(string(b), "populated 0") {
			return nil //nolint:nilerr // it is gone
		}
		if time.Now().After(end) {
			return fmt.Errorf("cgroup %s still has processes", dir)
		}
	}
}

// removeCgroup removes a cgroup and those below it.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil //nolint:nilerr // it is gone
	})
	if err != nil {
		return fmt.Errorf("list cgroup %s: %w", dir, err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		// A cgroup is busy for a moment after its last process has ended.
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			err := unix.Rmdir(dirs[i])
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
			}
		}
	}
	return nil
}
