// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Pod is a network namespace that stands for a pod. Its interface is eth0; all
// destinations are on its link, so an address added to any pod is reached from
// every other without a route.
type Pod struct {
	// Name is the name that the pod was asked for by.
	Name string
	// Netns is the namespace's name below NetnsDir.
	Netns string
	// Path is the namespace's file.
	Path string
	// IPv4 and IPv6 are the pod's own addresses.
	IPv4, IPv6 netip.Addr

	world *World
	ns    netns.NsHandle
	veth  string // the fabric's end

	cgroupDir *os.File // guarded by mu; nil before the first Command

	mu      sync.Mutex
	extra   []netip.Addr
	undo    []func() error
	removed bool
}

// AddPod makes a pod. Extra addresses are its as well, as by AddAddr.
func (w *World) AddPod(name string, extra ...netip.Addr) (*Pod, error) {
	p, err := w.newNamespace(name)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.nextPod++
	n := w.nextPod
	w.mu.Unlock()
	p.veth = "pod" + strconv.Itoa(n)
	p.IPv4, p.IPv6 = nthAddr(podNet4, n), nthAddr(podNet6, n)
	if err := p.connect(); err != nil {
		return nil, errors.Join(fmt.Errorf("pod %s: %w", name, err), p.close())
	}
	for _, a := range extra {
		if err := p.AddAddr(a); err != nil {
			return nil, errors.Join(err, p.close())
		}
	}
	w.mu.Lock()
	w.pods = append(w.pods, p)
	w.mu.Unlock()
	return p, nil
}

// Remove takes the pod away: its servers, its commands and its namespace's name.
func (p *Pod) Remove() error {
	w := p.world
	w.mu.Lock()
	w.pods = slices.DeleteFunc(w.pods, func(o *Pod) bool { return o == p })
	w.mu.Unlock()
	return errors.Join(killAll(p.cgroup()), p.close())
}

// newNamespace makes a named network namespace that has nothing but lo.
func (w *World) newNamespace(name string) (_ *Pod, err error) {
	p := &Pod{Name: name, Netns: w.Name + "-" + name, world: w, ns: netns.None()}
	p.Path = filepath.Join(NetnsDir, p.Netns)
	if err := os.MkdirAll(NetnsDir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of namespaces: %w", err)
	}
	f, err := os.OpenFile(p.Path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return nil, fmt.Errorf("name namespace %s: %w", p.Netns, err)
	}
	f.Close()
	p.undo = append(p.undo, func() error {
		if p.ns.IsOpen() {
			// By its descriptor the mount is found also when another one hides it: the
			// first "ip netns add" on a machine mounts the whole folder on itself.
			if err := unmount("/proc/self/fd/" + strconv.Itoa(int(p.ns))); err != nil {
				return err
			}
		}
		return removeNetns(p.Path)
	})
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make namespace %s: %w", p.Netns, err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", p.Path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount namespace %s: %w", p.Netns, err)
		}
		return quiet()
	})
	if err != nil {
		return nil, err
	}
	if p.ns, err = netns.GetFromPath(p.Path); err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", p.Netns, err)
	}
	h, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", p.Netns, err)
	}
	defer h.Close()
	if err := setUp(h, "lo"); err != nil {
		return nil, err
	}
	return p, nil
}

// quiet sets what a new namespace may have inherited from the host: address
// checks that delay, filters that drop.
func quiet() error {
	for file, value := range map[string]string{
		"ipv4/conf/all/rp_filter":        "0",
		"ipv4/conf/default/rp_filter":    "0",
		"ipv6/conf/all/disable_ipv6":     "0",
		"ipv6/conf/default/disable_ipv6": "0",
		"ipv6/conf/all/accept_dad":       "0",
		"ipv6/conf/default/accept_dad":   "0",
		"ipv6/conf/default/accept_ra":    "0",
	} {
		// The kernel resolves this path in the thread's namespace.
		err := os.WriteFile("/proc/sys/net/"+file, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s: %w", file, err)
		}
	}
	return nil
}

// connect joins the pod to the fabric.
func (p *Pod) connect() error {
	f, err := netlink.NewHandleAt(p.world.fabric.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the fabric: %w", err)
	}
	defer f.Close()
	br, err := f.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find the bridge: %w", err)
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: p.veth, MasterIndex: br.Attrs().Index},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(p.ns),
	}
	if err := f.LinkAdd(veth); err != nil {
		return fmt.Errorf("add the veth (module veth loaded?): %w", err)
	}
	if err := f.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set %s up: %w", p.veth, err)
	}
	// A namespace dies some time after its last user. The address must be free at
	// once, so the link goes first.
	p.undo = append(p.undo, p.disconnect)

	h, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	for _, a := range []netip.Prefix{
		netip.PrefixFrom(p.IPv4, podNet4.Bits()), netip.PrefixFrom(p.IPv6, podNet6.Bits()),
	} {
		if err := addAddr(h, eth0, a); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	for _, all := range []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	} {
		r := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: all}
		if all.IP.To4() != nil {
			r.Scope = netlink.SCOPE_LINK
		}
		if err := h.RouteAdd(r); err != nil {
			return fmt.Errorf("add the default route %s: %w", all, err)
		}
	}
	return nil
}

func (p *Pod) disconnect() error {
	f, err := netlink.NewHandleAt(p.world.fabric.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the fabric: %w", err)
	}
	defer f.Close()
	l, err := f.LinkByName(p.veth)
	if err != nil {
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		return fmt.Errorf("find %s: %w", p.veth, err)
	}
	if err := f.LinkDel(l); err != nil {
		return fmt.Errorf("delete %s: %w", p.veth, err)
	}
	return nil
}

// AddAddr gives the pod one more address. This is how a ClusterIP is reached
// without a service proxy: it stands on a server's pod.
func (p *Pod) AddAddr(a netip.Addr) error {
	h, err := netlink.NewHandleAt(p.ns, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", p.Netns, err)
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0 of %s: %w", p.Netns, err)
	}
	if err := addAddr(h, eth0, netip.PrefixFrom(a, a.BitLen())); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.extra = append(p.extra, a)
	return nil
}

// Addrs returns all addresses of the pod.
func (p *Pod) Addrs() []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]netip.Addr{p.IPv4, p.IPv6}, p.extra...)
}

// Cookie returns the namespace's cookie, as bpf_get_netns_cookie does.
func (p *Pod) Cookie() (cookie uint64, err error) {
	err = p.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		defer unix.Close(fd)
		cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return fmt.Errorf("get the namespace's cookie: %w", err)
		}
		return nil
	})
	return cookie, err
}

// Do runs f on a thread that is in the pod's namespace. Sockets that f makes
// belong to the pod for good; goroutines that it starts are not in the pod.
func (p *Pod) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(p.ns), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", p.Netns, err)
		}
		return f()
	})
}

// onThread runs f on the goroutine's own thread and brings that thread back
// into the namespace where it was.
func onThread(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("find this thread's namespace: %w", err)
	}
	defer home.Close()
	defer func() {
		if back := unix.Setns(int(home), unix.CLONE_NEWNET); back != nil {
			// The thread stays locked, so that it ends with its goroutine and
			// nobody else finds himself in the wrong namespace.
			err = errors.Join(err, fmt.Errorf("leave the namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return f()
}

// onClose registers what undoes a step; last step first.
func (p *Pod) onClose(f func() error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.undo = append(p.undo, f)
}

func (p *Pod) close() error {
	p.mu.Lock()
	if p.removed {
		p.mu.Unlock()
		return nil
	}
	p.removed = true
	undo := p.undo
	p.mu.Unlock()
	var errs []error
	for _, f := range slices.Backward(undo) {
		errs = append(errs, f())
	}
	if p.ns.IsOpen() {
		errs = append(errs, p.ns.Close())
	}
	return errors.Join(errs...)
}

func removeNetns(path string) error {
	if err := unmount(path); err != nil {
		return err
	}
	err := os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		err = removeHidden(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the name of a namespace: %w", err)
	}
	return nil
}

// unmount takes away the mount at path, if there is one.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

func setUp(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func addAddr(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(l, a); err != nil {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// nthAddr returns the address of net's n-th host. n is below 65536.
func nthAddr(net netip.Prefix, n int) netip.Addr {
	b := net.Addr().AsSlice()
	b[len(b)-2], b[len(b)-1] = byte(n>>8), byte(n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
