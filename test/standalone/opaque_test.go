// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
	"github.com/sidetrack-dev/sidetrack/test/programs"
)

const greeting = "J\x00\x00\x00\x0a8.0.33\x00\x2f\x00\x00\x00\x1c\x22\x5f\x7d\x3a\x4b\x07\x11\x00\xff\xff\xff\x02\x00\xff\xdf\x15\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00abcdefghijkl\x00mysql_native_password\x00"

// TestWhatIsNotHTTPFlowsThrough: the captured Services speak other protocols,
// with either side first.
func TestWhatIsNotHTTPFlowsThrough(t *testing.T) {
	blob := strings.Repeat("\x00\x01\x02GET / HTTP/1.1\r\nX-Sidetrack-Key: "+keyA+"\r\n\r\n\xff", 3000)
	both(t, func(t *testing.T, s *shop) {
		fin := []step{{clientFIN, ""}, sv("last words"), {serverFIN, ""}}
		playAll(t, s, s.opaqueWays(), []dialogue{
			{"MySQL, where the server speaks first", append([]step{sv(greeting), c("\x20\x00\x00\x01login"), sv("\x07\x00\x00\x02\x00\x00\x00\x02\x00\x00\x00"), {bothSay, blob}}, fin...)},
			{"SMTP, where the server speaks first", []step{sv("220 mx ESMTP\r\n"), c("EHLO x\r\n"), sv("250-mx\r\n250 8BITMIME\r\n"), c("QUIT\r\n"), sv("221 bye\r\n"), {serverCloses, ""}}},
			{"SSH, where both speak at once", append([]step{{bothSay, "SSH-2.0-OpenSSH_9.2\r\n"}, {bothSay, blob}}, fin...)},
			{"SSH, where the server waits", append([]step{c("SSH-2.0-client\r\n"), sv("SSH-2.0-server\r\n"), {bothSay, blob}}, fin...)},
			{"Redis", append([]step{c("*1\r\n$4\r\nPING\r\n"), sv("+PONG\r\n")}, fin...)},
			{"Redis, inline", append([]step{c("PING\r\n"), sv("+PONG\r\n"), c("GET a\r\n"), sv("$-1\r\n")}, fin...)},
			{"memcached", append([]step{c("set k 0 0 5\r\nhello\r\n"), sv("STORED\r\n"), c("get k\r\n"), sv("VALUE k 0 5\r\nhello\r\nEND\r\n")}, fin...)},
			{"FastCGI", append([]step{c("\x01\x01\x00\x01\x00\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"), sv("\x01\x06")}, fin...)},
			{"PostgreSQL", append([]step{c("\x00\x00\x00\x08\x04\xd2\x16\x2f"), sv("N")}, fin...)},
			{"HTTP/0.9", []step{c("GET /\r\n"), sv("<html>"), {serverCloses, ""}}},
			{"a line without an end", append([]step{c(strings.Repeat("A", 200_000)), sv("enough")}, fin...)},
			{"nothing at all", []step{{clientFIN, ""}, sv("nothing?"), {serverFIN, ""}}},
			{"a server that closes at once", []step{{serverCloses, ""}}},
			{"a server that resets at once", []step{{serverResets, ""}}},
			{"a client that resets", []step{c("\x16\x03"), {clientResets, ""}}},
			{"a connection that rests", append([]step{c("\x16\x03\x01\x00\x05hello"), sv("\x16\x03\x01"), {bothSay, blob}, {bothSay, blob}}, fin...)},
		})
	})
}

// TestTLSReachesTheServerThatWasMeant: openssl or any other client sees the
// certificate of the server that its identity, not a header, leads to.
func TestTLSReachesTheServerThatWasMeant(t *testing.T) {
	programs.Need(t, "openssl", "curl")
	both(t, func(t *testing.T, s *shop) {
		n := s.nextPort()
		for name, p := range s.places() {
			cert := selfSigned(t, name)
			h := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, Handler: who(name)}
			l, err := p.Listen("tcp", fmt.Sprintf(":%d", n))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { h.Close() })
			go func() { _ = h.ServeTLS(l, "", "") }()
		}
		for _, tt := range []struct {
			from *lab.Pod
			want string
		}{{s.client, "baseline"}, {s.tester, s.want("fork-a")}, {s.runner, s.want("fork-a")}, {s.testerB, s.want("fork-b")}} {
			cmd := tt.from.Command("openssl", "s_client", "-connect", fmt.Sprintf("%s:%d", wideIP, n), "-servername", "web")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "CN = "+tt.want) {
				t.Errorf("%s: openssl: %v, want a certificate of %s:\n%.600s", tt.from.Name, err, tt.want, out)
			}
			// A header within TLS is nobody's business; HTTP/2 is negotiated.
			out, err = tt.from.Command("curl", "-sSk", "-H", "x-sidetrack-key: "+keyB,
				fmt.Sprintf("https://%s:%d/", wideIP, n), fmt.Sprintf("https://[%s]:%d/", wideIP6, n)).CombinedOutput()
			if want := strings.Repeat(tt.want+" HTTP/2.0\n", 2); err != nil || string(out) != want {
				t.Errorf("%s: curl: %v: %q, want %q", tt.from.Name, err, out, want)
			}
		}
	})
}

func who(name string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set(lab.ServedBy, name)
		fmt.Fprintf(rw, "%s %s\n", name, r.Proto)
	})
}

func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"web"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestARefusedBaselineIsARefusedConnection: nobody listens, and connect(2) says so.
func TestARefusedBaselineIsARefusedConnection(t *testing.T) {
	programs.Need(t, "curl", "python3")
	both(t, func(t *testing.T, s *shop) {
		for _, ip := range []string{wideIP, wideIP6, s.base.IPv4.String(), s.base.IPv6.String()} {
			to := netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(s.nextPort()))
			for _, kind := range kindsFor(to.Addr()) {
				so := kind.socket(t, s.client, unix.SOCK_STREAM)
				if err := so.connect(to); err != unix.ECONNREFUSED {
					t.Errorf("%s to %s: %v, want %v", kind.name, to, err, unix.ECONNREFUSED)
				}
				bound := kind.socket(t, s.client, unix.SOCK_STREAM)
				from := s.client.IPv4
				if to.Addr().Is6() {
					from = s.client.IPv6
				}
				if err := unix.Bind(bound.fd, kind.address(netip.AddrPortFrom(mappedFor(kind, from), 0))); err != nil {
					t.Fatal(err)
				}
				if err := bound.connect(to); err != unix.ECONNREFUSED {
					t.Errorf("%s to %s, bound to %s: %v, want %v", kind.name, to, from, err, unix.ECONNREFUSED)
				}
			}
			if _, err := s.client.Dial("tcp", to.String()); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("Go, %s: %v, want %v", to, err, unix.ECONNREFUSED)
			}
			const connect = "import socket, sys\ntry:\n  socket.create_connection((sys.argv[1], int(sys.argv[2])))\nexcept ConnectionRefusedError:\n  print('refused')"
			if out, err := s.client.Command("python3", "-c", connect, ip, fmt.Sprint(to.Port())).CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "refused" {
				t.Errorf("Python, %s: %q, %v", to, out, err)
			}
			// Nobody has to answer for it to be told whether the pod is covered.
			timeout := "200ms"
			if s.agent != nil {
				timeout = patience.String()
			}
			if out, err := s.client.Command(binary(t), "covered", "--address", to.String(), "--timeout", timeout).CombinedOutput(); (err == nil) != (s.agent != nil) {
				t.Errorf("sidetrackd covered, %s: %v, %s", to, err, out)
			}
			// Tagged or not.
			for _, args := range [][]string{nil, {"-H", "x-sidetrack-key: " + keyA}} {
				out, err := s.client.Command("curl", append(args, "-q", "-sS", "http://"+to.String()+"/")...).CombinedOutput()
				exit := (*exec.ExitError)(nil)
				if !errors.As(err, &exit) || exit.ExitCode() != 7 {
					t.Errorf("curl, %s: %v, %s, want its code for \"could not connect\", 7", to, err, out)
				}
			}
		}
	})
	t.Run("and one that comes back is there", func(t *testing.T) {
		s := newShop(t)
		s.start()
		n := s.nextPort()
		to := fmt.Sprintf("%s:%d", wideIP, n)
		if _, err := s.client.Dial("tcp", to); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%v, want %v", err, unix.ECONNREFUSED)
		}
		if err := errors.Join(s.base.ServeHTTP("baseline", fmt.Sprintf(":%d", n)), s.forkA.ServeHTTP("fork-a", fmt.Sprintf(":%d", n))); err != nil {
			t.Fatal(err)
		}
		for header, want := range map[string]string{"x-nothing: 1": "baseline", "x-sidetrack-key: " + keyA: "fork-a"} {
			got, err := s.client.Get("http://"+to+"/", header)
			if err != nil || got.Server != want {
				t.Errorf("got %+v, %v, want %s", got, err, want)
			}
		}
	})
}

// mappedFor is an address as this kind of socket has it.
func mappedFor(k socketKind, a netip.Addr) netip.Addr {
	if k.family == unix.AF_INET6 {
		return netip.AddrFrom16(a.As16())
	}
	return a
}
