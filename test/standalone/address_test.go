// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// TestCapturedSocketsOfAllKinds: requests are routed over every kind of socket
// and address; the servers see the pod's own address, of the family dialled, and
// getpeername shows what was dialled.
func TestCapturedSocketsOfAllKinds(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveSeen()
		for _, d := range s.doors(webIP, webIP6, 80, 8080) {
			for _, k := range kindsFor(d.addr) {
				for _, own := range []bool{false, true} {
					name := d.name + ", " + k.name
					if own {
						name += ", bound to its own address"
					}
					t.Run(name, func(t *testing.T) {
						so := k.socket(t, s.client, unix.SOCK_STREAM)
						pod := s.client.IPv6
						if d.addr.Is4() {
							pod = s.client.IPv4
						}
						if own {
							if err := unix.Bind(so.fd, k.address(netip.AddrPortFrom(pod, 0))); err != nil {
								t.Fatal(err)
							}
						}
						if err := so.connect(d.to()); err != nil {
							t.Fatalf("connect: %v", err)
						}
						if got, want := so.peer(), written(k.address(d.to())); got != want {
							t.Errorf("getpeername says %s, want %s", got, want)
						}
						for _, tg := range []tag{{"baseline", nil}, {s.want("fork-b"), []string{"x-sidetrack-key: " + keyB}}, {"baseline", nil}} {
							seen, err := so.request(tg.headers)
							if err != nil || seen.Server != tg.want {
								t.Fatalf("%s answered, %v, want %s", seen.Server, err, tg.want)
							}
							if got := netip.MustParseAddrPort(seen.Remote).Addr().Unmap(); got != pod {
								t.Errorf("%s sees the client as %s, want %s", seen.Server, got, pod)
							}
						}
					})
				}
			}
		}
	})
}

// request sends one request over a raw socket to a server of lab.ServeHTTP.
func (s *sock) request(headers []string) (lab.Seen, error) {
	text := "GET /x HTTP/1.1\r\nHost: web\r\n" + strings.Join(append(headers, ""), "\r\n") + "\r\n"
	if _, err := unix.Write(s.fd, []byte(text)); err != nil {
		return lab.Seen{}, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(fdReader(s.fd)), nil)
	if err != nil {
		return lab.Seen{}, err
	}
	defer resp.Body.Close()
	return lab.ReadSeen(resp)
}

// fdReader reads from a blocking socket.
type fdReader int

func (fd fdReader) Read(b []byte) (int, error) {
	n, err := unix.Read(int(fd), b)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// TestClusterIPsBehindAServiceProxy: as on a node, the ClusterIP is nobody's
// address and translated by rules in the pod's namespace.
func TestClusterIPsBehindAServiceProxy(t *testing.T) {
	programs.Need(t, "nft")
	s := newShop(t)
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		return errors.Join(p.ServeHTTP(name, ":8080"), p.ServeUDP(name, ":5353"), p.ServeTCP(name, ":7070"))
	})
	nat := []netip.Addr{netip.MustParseAddr("10.96.7.7"), netip.MustParseAddr("fd96::7:7")}
	ports := []port{{name: "http", number: 80, target: 8080}, {name: "raw", number: 70, target: 7070}, {name: "dns", number: 53, target: 5353, protocol: "UDP"}}
	put(t, s.dir, "nat.yaml",
		service{name: "nat", ips: []string{nat[0].String(), nat[1].String()}, ports: ports, endpoints: endpointsOf(s.base)}.String(),
		service{name: "nat-a", ports: ports, endpoints: endpointsOf(s.forkA)}.String(),
		sandbox("nat", "nat-key-0123456789", redirects("nat", "nat-a")))
	tester := s.MustPod("nat-tester")
	put(t, s.dir, "nat-pod.yaml", tester.Object("sidetrack.dev/sandbox: nat"))
	for _, p := range []*lab.Pod{s.client, tester} {
		for i, ip := range nat {
			for _, pt := range ports {
				if err := p.DNAT(strings.ToLower(pt.proto()), netip.AddrPortFrom(ip, uint16(pt.number)), netip.AddrPortFrom(s.base.Addrs()[i], uint16(pt.target))); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	check := func(t *testing.T, fork string) {
		for _, ip := range nat {
			s.client.MustReach("tcp", lab.HostPort(ip, 70), "baseline")
			s.client.MustReach("udp", lab.HostPort(ip, 53), "baseline")
			tester.MustReach("tcp", lab.HostPort(ip, 70), fork)
			tester.MustReach("udp", lab.HostPort(ip, 53), fork)
			for _, tg := range []tag{{"baseline", nil}, {fork, []string{"x-sidetrack-key: nat-key-0123456789"}}} {
				got := s.client.MustGet("http://"+lab.HostPort(ip, 80)+"/", tg.headers...)
				if got.Server != tg.want {
					t.Errorf("%s, %q: %s answered, want %s", ip, tg.headers, got.Server, tg.want)
				}
			}
		}
	}
	check(t, "baseline")
	s.start()
	check(t, "fork-a")
}

// TestRedirectsOfSinglePorts by name and by number, with targets that are named
// otherwise, and with addresses.
func TestRedirectsOfSinglePorts(t *testing.T) {
	s := newShop(t)
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		return errors.Join(p.ServeTCP(name, ":4001", ":4002", ":4003", ":4004"), p.ServeUDP(name, ":4005"), p.ServeTCP(name+"-9", ":4009"), p.ServeUDP(name+"-9", ":4009"))
	})
	ports := []port{{name: "one", number: 4001}, {name: "two", number: 4002}, {name: "three", number: 4003}, {name: "four", number: 4004}, {name: "five", number: 4005, protocol: "UDP"}}
	put(t, s.dir, "many.yaml",
		service{name: "many", ips: []string{"10.96.8.8"}, ports: ports, endpoints: endpointsOf(s.base)}.String(),
		service{name: "many-a", ports: ports, endpoints: endpointsOf(s.forkA)}.String(),
		service{name: "single", ports: []port{{name: "whatever", number: 77, target: 4009}}, endpoints: endpointsOf(s.forkA)}.String(),
		sandbox("many", "many-key-0123456789", `redirects:
  - {from: {service: many, port: one}, to: {service: many-a}}
  - {from: {service: many, port: 4002}, to: {service: single}}
  - {from: {service: many, port: "4003"}, to: {address: `+fmt.Sprintf("%q", s.forkB.IPv4)+`, port: 4009}}
  - {from: {service: many, port: five}, to: {address: `+fmt.Sprintf("%q", s.forkB.IPv4)+`, port: 4009}}`))
	tester := s.MustPod("many-tester")
	put(t, s.dir, "many-pod.yaml", tester.Object("sidetrack.dev/sandbox: many"))
	if err := s.base.AddAddr(netip.MustParseAddr("10.96.8.8")); err != nil {
		t.Fatal(err)
	}
	s.start()
	for _, ip := range []string{"10.96.8.8", s.base.IPv4.String()} {
		tester.MustReach("tcp", ip+":4001", "fork-a")
		tester.MustReach("tcp", ip+":4002", "fork-a-9")
		tester.MustReach("tcp", ip+":4003", "fork-b-9")
		tester.MustReach("tcp", ip+":4004", "baseline")
		tester.MustReach("udp", ip+":4005", "fork-b-9")
		tester.MustReach("tcp", ip+":4009", "baseline-9")
	}
	t.Run("a whole Service to an address keeps the number of the port", func(t *testing.T) {
		put(t, s.dir, "many-sandbox.yaml", sandbox("many2", "many2-key-0123456789", `redirects: [{from: {service: many}, to: {address: `+fmt.Sprintf("%q", s.forkB.IPv6)+`}}]`))
		put(t, s.dir, "many-pod.yaml", tester.Object("sidetrack.dev/sandbox: many2"))
		eventually(t, func() error {
			got, err := tester.Ask("tcp6", lab.HostPort(s.base.IPv6, 4004))
			return errors.Join(err, expect("server", got, "fork-b"))
		})
	})
}

// TestEndpointsAreUsedEvenly and those that are not ready never.
func TestEndpointsAreUsedEvenly(t *testing.T) {
	s := newShop(t)
	var pods []*lab.Pod
	for i := range 4 {
		p := s.MustPod(fmt.Sprintf("even-%d", i))
		p.MustServeHTTP(p.Name, ":8080")
		p.MustServeTCP(p.Name, ":7070")
		p.MustServeUDP(p.Name, ":5353")
		pods = append(pods, p)
	}
	s.serveEverywhere(func(name string, p *lab.Pod) error {
		return errors.Join(p.ServeHTTP(name, ":8080"), p.ServeTCP(name, ":7070"), p.ServeUDP(name, ":5353"))
	})
	ports := []port{{name: "http", number: 8080}, {name: "raw", number: 7070}, {name: "dns", number: 5353, protocol: "UDP"}}
	eps := endpointsOf(pods...)
	eps[6].unready, eps[7].unready = true, true
	put(t, s.dir, "even.yaml",
		service{name: "even", ports: ports, endpoints: endpointsOf(s.base)}.String(),
		service{name: "even-a", ports: ports, endpoints: eps}.String(),
		sandbox("even", "even-key-0123456789", redirects("even", "even-a")))
	tester := s.MustPod("even-tester")
	put(t, s.dir, "even-pod.yaml", tester.Object("sidetrack.dev/sandbox: even"))
	s.start()
	const total = 300
	for _, way := range []struct {
		name string
		ask  func() (string, error)
	}{
		{"TCP flows", func() (string, error) { return tester.Ask("tcp", lab.HostPort(s.base.IPv4, 7070)) }},
		{"TCP flows, IPv6", func() (string, error) { return tester.Ask("tcp", lab.HostPort(s.base.IPv6, 7070)) }},
		{"UDP flows", func() (string, error) { return tester.Ask("udp", lab.HostPort(s.base.IPv4, 5353)) }},
		{"requests", func() (string, error) {
			seen, err := s.client.Get("http://"+lab.HostPort(s.base.IPv4, 8080)+"/", "x-sidetrack-key: even-key-0123456789")
			return seen.Server, err
		}},
	} {
		got := map[string]int{}
		for range total {
			server, err := way.ask()
			if err != nil {
				t.Fatalf("%s: %v", way.name, err)
			}
			got[server]++
		}
		// Each has a third of them, give or take 8: a fifth is out of the question.
		for _, name := range []string{"even-0", "even-1", "even-2"} {
			if got[name] < total/5 {
				t.Errorf("%s: %v, want an even spread over three", way.name, got)
				break
			}
		}
		if len(got) != 3 {
			t.Errorf("%s: %v, want the three that are ready alone", way.name, got)
		}
	}
}

// TestPipelinedRequestsAreAnsweredInOrder, each by its own server.
func TestPipelinedRequestsAreAnsweredInOrder(t *testing.T) {
	both(t, func(t *testing.T, s *shop) {
		s.serveEcho()
		tags := s.tags()
		for _, burst := range []int{2, 7, 40, 200} {
			conn, err := s.client.Dial("tcp", webIP+":80")
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			for i := range burst {
				tg := tags[(i*5)%len(tags)]
				body := strings.Repeat("b", i*37%3000)
				fmt.Fprintf(&text, "POST /?size=%d HTTP/1.1\r\nHost: web\r\nX-Number: %d\r\n%s\r\nContent-Length: %d\r\n\r\n%s",
					(i*101)%5000, i, strings.Join(append([]string{"X-Expect: " + tg.want}, tg.headers...), "\r\n"), len(body), body)
			}
			sent := make(chan error, 1)
			go func() { sent <- send(conn, text.String(), false) }()
			r := bufio.NewReader(conn)
			for i := range burst {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatalf("burst of %d: response %d: %v", burst, i, err)
				}
				b, err := io.ReadAll(resp.Body)
				want := tags[(i*5)%len(tags)].want
				if err != nil || len(b) != (i*101)%5000 || resp.Header.Get("X-Number") != fmt.Sprint(i) || resp.Header.Get(lab.ServedBy) != want ||
					resp.Header.Get("X-Length") != fmt.Sprint(i*37%3000) {
					t.Fatalf("burst of %d: response %d is %v with %d bytes, %v; want one of %s", burst, i, resp.Header, len(b), err, want)
				}
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			conn.Close()
		}
	})
}

// TestFilesOfAnUnmodifiedNginxArriveWhole, fetched and sent by an unmodified curl.
func TestFilesOfAnUnmodifiedNginxArriveWhole(t *testing.T) {
	heavy(t)
	programs.Need(t, "nginx", "curl")
	const size = 64 << 20
	both(t, func(t *testing.T, s *shop) {
		s.serveEcho()
		for name, p := range s.places() {
			dir := s.startNginx(t, p, name, "nginx-server.conf", "127.0.0.1:82")
			write(t, dir+"/files/large", noise(int64(len(name)), size))
		}
		large := filepath.Join(s.Dir(), "large")
		write(t, large, noise(3, size))
		for _, tg := range []tag{{"baseline", []string{"X: y"}}, {s.want("fork-b"), []string{"tracestate: sidetrack=" + keyB}}} {
			cmd := s.client.Command("curl", "-sSf", "-H", tg.headers[0], "http://10.96.0.52:82/files/large")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			got := hashOf(out)
			if err := cmd.Wait(); err != nil || got != hashOf(noise(int64(len(tg.want)), size)) {
				t.Errorf("%s: download: %v, hash %s", tg.want, err, got)
			}
			// A file's length is known and announced; standard input's is not.
			for _, from := range []string{large, "-"} {
				up := s.client.Command("curl", "-sSf", "-H", tg.headers[0], "-T", from, "-o", "/dev/null",
					"-w", "%header{x-served-by} %header{x-length} %header{x-sha256}", "http://"+webIP+"/upload")
				up.Stdin = noise(3, size)
				text, err := up.Output()
				if want := fmt.Sprintf("%s %d %s", tg.want, size, hashOf(noise(3, size))); err != nil || string(text) != want {
					t.Errorf("upload of %s: %v: %q, want %q", from, err, text, want)
				}
			}
		}
	})
}

func write(t *testing.T, path string, from io.Reader) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(f, from); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
