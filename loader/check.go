// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// CheckLine is one thing that the agent needs of the kernel and the host.
type CheckLine struct {
	Name   string
	OK     bool
	Detail string // what was found
	Remedy string // what to do about it; empty when OK
}

// Check says, line by line, whether the agent can run here. It attaches, mounts
// and pins nothing.
func Check(cfg Config) []CheckLine {
	checks := []struct {
		name   string
		remedy string
		check  func() (detail string, err error)
	}{
		{"kernel version", "run Linux 6.1 or later", checkKernel},
		{"kernel BTF", "run a kernel built with CONFIG_DEBUG_INFO_BTF=y", checkBTF},
		{"capabilities", "run as root, or with CAP_NET_ADMIN and CAP_SYS_ADMIN", checkCapabilities},
		{"cgroup v2", "mount it (mount -t cgroup2 none /sys/fs/cgroup), or name a directory in it with --cgroup", cfg.checkCgroup},
		{"BPF file system", "run a kernel built with CONFIG_BPF_SYSCALL=y, and name an empty directory or a mounted bpffs with --bpffs", cfg.checkBPFFS},
		{"program types", "run a kernel built with CONFIG_CGROUP_BPF=y", checkProgramTypes},
		{"map types", "run Linux 6.1 or later built with CONFIG_BPF_SYSCALL=y", checkMapTypes},
		{"BPF helpers", "run Linux 6.1 or later", checkHelpers},
		{"BPF programs", "report this, with the kernel's version and the message", cfg.checkLoad},
		{"SO_NETNS_COOKIE", "run Linux 5.14 or later", checkNetnsCookie},
		{"SO_MARK", "add CAP_NET_ADMIN", cfg.checkMark},
		{"raw sockets", "add CAP_NET_RAW; without it, clients are connected before the baseline is dialled, and one that refuses is a reset to them instead of a refusal", checkRaw},
		{"SOCK_DESTROY", "run a kernel built with CONFIG_INET_DIAG_DESTROY=y; without it, idle connections from before a sandbox stay with the baseline", checkSockDestroy},
	}
	lines := make([]CheckLine, 0, len(checks))
	for _, c := range checks {
		line := CheckLine{Name: c.name, OK: true}
		var err error
		if line.Detail, err = c.check(); err != nil {
			line.OK, line.Detail, line.Remedy = false, err.Error(), c.remedy
		}
		lines = append(lines, line)
	}
	return lines
}

// unmet returns an error for each line of Check that fails, but for the one that
// loads the programs: whoever asks has just tried that.
func unmet(cfg Config) error {
	var errs []error
	for _, l := range Check(cfg) {
		if !l.OK && l.Name != "BPF programs" {
			errs = append(errs, fmt.Errorf("%s: %s: %s", l.Name, l.Detail, l.Remedy))
		}
	}
	return errors.Join(errs...)
}

func checkKernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	release := unix.ByteSliceToString(u.Release[:])
	var a, b int
	// What follows the second number differs from one distribution to the next.
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return "", fmt.Errorf("%s is no release that can be compared with 6.1: %w", release, err)
	}
	if a < 6 || a == 6 && b < 1 {
		return "", fmt.Errorf("%s is older than 6.1", release)
	}
	return release, nil
}

func checkBTF() (string, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return "", err
	}
	var sock *btf.Struct
	if err := spec.TypeByName("sock_common", &sock); err != nil {
		return "", fmt.Errorf("struct sock_common: %w", err)
	}
	return "/sys/kernel/btf/vmlinux", nil
}

func checkCapabilities() (string, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return "", err
	}
	_, after, _ := bytes.Cut(status, []byte("CapEff:"))
	line, _, _ := bytes.Cut(after, []byte("\n"))
	have, err := strconv.ParseUint(strings.TrimSpace(string(line)), 16, 64)
	if err != nil {
		return "", fmt.Errorf("read CapEff: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		name string
		bit  int
	}{
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
		// It includes CAP_BPF and CAP_PERFMON, and setns asks for it.
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
	} {
		if have&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return "", fmt.Errorf("missing: %s", strings.Join(missing, ", "))
	}
	return "all there", nil
}

func (c Config) checkCgroup() (string, error) {
	dir := c.Cgroup
	if dir == "" {
		var err error
		dir, err = cgroup2Root()
		if errors.Is(err, errNoCgroup2) {
			root, err := openCgroup2()
			if err != nil {
				return "", err
			}
			return "mounted nowhere; the agent has it to itself", root.Close()
		}
		if err != nil {
			return "", err
		}
	}
	if _, err := cgroupID(dir); err != nil {
		return "", err
	}
	return dir, nil
}

func (c Config) checkBPFFS() (string, error) {
	ok, err := onBPFFS(c.BPFFS)
	if err == nil && ok {
		return c.BPFFS, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return "", err
	}
	if !slices.Contains(strings.Fields(string(known)), "bpf") {
		return "", errors.New("the kernel knows no BPF file system")
	}
	if entries, err := os.ReadDir(c.BPFFS); err == nil && len(entries) > 0 {
		return "", fmt.Errorf("%s is not a BPF file system and not empty", c.BPFFS)
	}
	return c.BPFFS + ", which the agent will mount", nil
}

func checkProgramTypes() (string, error) {
	if err := features.HaveProgramType(ebpf.CGroupSockAddr); err != nil {
		return "", fmt.Errorf("cgroup_sock_addr: %w", err)
	}
	if err := features.HaveProgramType(ebpf.SocketFilter); err != nil {
		return "", fmt.Errorf("socket_filter: %w", err)
	}
	return "cgroup_sock_addr, socket_filter", nil
}

func checkMapTypes() (string, error) {
	types := []ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.PerCPUArray, ebpf.Array, ebpf.SkStorage, ebpf.RingBuf}
	names := make([]string, 0, len(types))
	for _, t := range types {
		if err := features.HaveMapType(t); err != nil {
			return "", fmt.Errorf("%s: %w", t, err)
		}
		names = append(names, t.String())
	}
	return strings.Join(names, ", "), nil
}

func checkHelpers() (string, error) {
	helpers := []asm.BuiltinFunc{
		asm.FnSetRetval, asm.FnGetRetval, asm.FnGetNetnsCookie, asm.FnGetSocketCookie, asm.FnSkStorageGet,
		asm.FnSkcToTcp6Sock, asm.FnSkcToUdp6Sock, asm.FnKtimeGetBootNs, asm.FnGetPrandomU32, asm.FnGetCurrentAncestorCgroupId,
	}
	for _, h := range helpers {
		if err := features.HaveProgramHelper(ebpf.CGroupSockAddr, h); err != nil {
			return "", fmt.Errorf("%s: %w", h, err)
		}
	}
	return fmt.Sprintf("all %d", len(helpers)), nil
}

// checkLoad asks the verifier.
func (c Config) checkLoad() (string, error) {
	small := DefaultConfig()
	small.MaxFlowRoutes, small.MaxDestinations, small.MaxBackends, small.MaxIdentities, small.MaxNamespaces = 1, 1, 1, 1, 1
	small.MaxUDPPeers = 64
	o, err := small.load(nil)
	if err != nil {
		return "", err
	}
	n := len(o.programs)
	if err := o.Close(); err != nil {
		return "", err
	}
	syns, err := newSYNs(c.Mark, nil)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("the kernel accepts all %d", n+1), syns.Close()
}

func checkNetnsCookie() (string, error) {
	cookie, err := ownNetns()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("this namespace's is %d", cookie), nil
}

// ownNetns returns the cookie of this process's network namespace.
func ownNetns() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("getsockopt: %w", err)
	}
	return cookie, nil
}

func (c Config) checkMark() (string, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(c.Mark)); err != nil {
		return "", fmt.Errorf("setsockopt: %w", err)
	}
	return fmt.Sprintf("%#x", c.Mark), nil
}

func checkRaw() (string, error) {
	for family, name := range map[int]string{unix.AF_INET: "IPv4", unix.AF_INET6: "IPv6"} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		unix.Close(fd)
	}
	return "there", nil
}

// checkSockDestroy asks for the end of a connection that cannot be: its source
// port is zero.
func checkSockDestroy() (string, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return "", fmt.Errorf("sock_diag: %w", err)
	}
	defer unix.Close(fd)

	const sockDestroy = 21 // SOCK_DESTROY of linux/sock_diag.h
	const size = unix.SizeofNlMsghdr + 56
	b := make([]byte, 0, size)
	ne, be := binary.NativeEndian, binary.BigEndian
	b = ne.AppendUint32(b, size) // struct nlmsghdr
	b = ne.AppendUint16(b, sockDestroy)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = ne.AppendUint32(b, 1)
	b = ne.AppendUint32(b, 0)
	b = append(b, unix.AF_INET, unix.IPPROTO_TCP, 0, 0) // struct inet_diag_req_v2
	b = ne.AppendUint32(b, ^uint32(0))
	b = be.AppendUint16(b, 0)
	b = be.AppendUint16(b, 1)
	b = append(b, 127, 255, 255, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, 127, 255, 255, 254, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	b = ne.AppendUint32(b, 0)
	b = ne.AppendUint64(b, ^uint64(0)) // any cookie

	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return "", fmt.Errorf("sock_diag: %w", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return "", fmt.Errorf("sock_diag: %w", err)
	}
	if n < unix.SizeofNlMsghdr+4 || ne.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return "", errors.New("sock_diag: unexpected answer")
	}
	switch errno := unix.Errno(-int32(ne.Uint32(answer[unix.SizeofNlMsghdr:]))); errno {
	case unix.ENOENT:
		return "there", nil
	default:
		return "", fmt.Errorf("sock_diag: %w", errno)
	}
}
