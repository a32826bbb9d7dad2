// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// sockets lists the sockets in a pod's namespace that somebody could notice:
// listening, connected, closing.
func sockets(t *testing.T, p *lab.Pod) []string {
	t.Helper()
	var all []string
	err := p.Do(func() error {
		for _, file := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet", "unix", "netlink"} {
			b, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			for _, line := range lines[1:] {
				f := strings.Fields(line)
				switch {
				case strings.HasPrefix(file, "tcp") && f[3] == "06":
					continue // TIME_WAIT of a connection that is over
				case strings.HasPrefix(file, "tcp"), strings.HasPrefix(file, "udp"), strings.HasPrefix(file, "raw"):
					all = append(all, file+" "+f[1]+" "+f[2])
				case file == "netlink" && f[2] == "0":
					continue // the kernel's own
				default:
					all = append(all, file+" "+strings.Join(f[1:], " "))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// sameSockets wants a pod to have the sockets that it had before, once those of
// connections that the test has closed are gone.
func sameSockets(t *testing.T, p *lab.Pod, before []string) {
	t.Helper()
	eventually(t, func() error {
		if now := sockets(t, p); !slices.Equal(now, before) {
			return fmt.Errorf("%s: sockets before\n%s\nand now\n%s", p.Name, strings.Join(before, "\n"), strings.Join(now, "\n"))
		}
		return nil
	})
}

// sameTuple wants a server to see exactly the socket that the client has.
func sameTuple(t *testing.T, from *lab.Pod, d dialled) {
	t.Helper()
	for _, k := range kindsFor(d.addr) {
		so := k.socket(t, from, unix.SOCK_STREAM)
		if err := so.connect(d.to()); err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		seen, err := so.request([]string{"X: y"})
		if err != nil {
			t.Fatalf("%s: %v", d.name, err)
		}
		sa, err := unix.Getsockname(so.fd)
		if err != nil {
			t.Fatal(err)
		}
		plain := func(s string) netip.AddrPort {
			a := netip.MustParseAddrPort(s)
			return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		}
		if plain(seen.Remote) != plain(written(sa)) || plain(seen.Local) != d.to() || seen.Server != "baseline" {
			t.Errorf("%s over %s: %s saw %s -> %s, the client has %s -> %s", d.name, k.name, seen.Server, seen.Remote, seen.Local, written(sa), d.to())
		}
		so.close()
	}
}

// counters are the metrics that must not move without a redirect.
func counters(s samples) map[string]float64 {
	all := map[string]float64{}
	for _, m := range s {
		if strings.HasPrefix(m.name, "sidetrack_flows") || strings.HasPrefix(m.name, "sidetrack_requests") || strings.HasPrefix(m.name, "sidetrack_router_") {
			all[m.name+"{"+m.labels+"}"] = m.value
		}
	}
	return all
}

// restingCounters are counters when no connection is left that may move them.
func restingCounters(t *testing.T, a *agent) map[string]float64 {
	t.Helper()
	eventually(t, func() error {
		return expect("connections", a.scrape().sum("sidetrack_router_connections"), 0)
	})
	return counters(a.scrape())
}

// TestWhatIsNotRedirectedIsUntouched: the server sees the client's own socket,
// as on a host where the agent has never run.
func TestWhatIsNotRedirectedIsUntouched(t *testing.T) {
	s := newShop(t)
	s.serveSeen()
	before := map[*lab.Pod][]string{}
	pods := []*lab.Pod{s.client, s.tester, s.base, s.forkA}
	for _, p := range pods {
		before[p] = sockets(t, p)
	}
	web, plain := s.doors(webIP, webIP6, 80, 8080), s.doors(plainIP, plainIP6, 81, 8081)
	everything := func(t *testing.T, doors ...dialled) {
		t.Helper()
		for _, d := range doors {
			sameTuple(t, s.client, d)
		}
	}
	t.Run("without the agent", func(t *testing.T) { everything(t, append(web, plain...)...) })

	sandboxes := []string{"sandbox-a.yaml", "sandbox-b.yaml"}
	for _, f := range sandboxes {
		drop(t, s.dir, f)
	}
	a := s.start()
	t.Run("with the agent and no sandbox", func(t *testing.T) {
		everything(t, append(web, plain...)...)
		sameTuple(t, s.tester, web[0])
		for _, p := range pods {
			sameSockets(t, p, before[p])
		}
		for name, v := range counters(a.scrape()) {
			if v != 0 {
				t.Errorf("%s is %v", name, v)
			}
		}
	})
	t.Run("with sandboxes, a Service that they do not redirect", func(t *testing.T) {
		s.putSandbox("a", keyA)
		s.putSandbox("b", keyB)
		eventually(t, func() error {
			got, err := s.client.Get("http://"+webIP+"/", "x-sidetrack-key: "+keyA)
			if err == nil && got.Server != "fork-a" {
				err = fmt.Errorf("%s answered", got.Server)
			}
			return err
		})
		at := restingCounters(t, a)
		everything(t, plain...)
		for _, d := range plain {
			sameTuple(t, s.tester, d) // a pod of a sandbox, without inject
		}
		for name, v := range counters(a.scrape()) {
			if v != at[name] {
				t.Errorf("%s has gone from %v to %v", name, at[name], v)
			}
		}
	})
	t.Run("with sandboxes, pods that the agent has not been told of", func(t *testing.T) {
		stranger := s.MustPod("stranger")
		empty := sockets(t, stranger)
		for _, d := range web {
			sameTuple(t, stranger, d)
		}
		sameSockets(t, stranger, empty)
	})
	t.Run("when the sandboxes are gone again", func(t *testing.T) {
		for _, f := range sandboxes {
			drop(t, s.dir, f)
		}
		for _, p := range pods {
			sameSockets(t, p, before[p])
		}
		at := restingCounters(t, a)
		everything(t, append(web, plain...)...)
		for name, v := range counters(a.scrape()) {
			if v != at[name] {
				t.Errorf("%s has gone from %v to %v", name, at[name], v)
			}
		}
	})
	t.Run("when the agent is gone and uninstalled", func(t *testing.T) {
		a.stop()
		if out, err := once(t, "uninstall", "--bpffs", s.BPFFS); err != nil {
			t.Fatalf("uninstall: %v\n%s", err, out)
		}
		everything(t, append(web, plain...)...)
		sameTuple(t, s.tester, web[0])
	})
}
