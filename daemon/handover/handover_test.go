// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/daemon/router/http1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test must run as root")
		}
		t.Skip("the socket is root's: run this test as root")
	}
}

// pair is a conversation.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	asRoot(t)
	l, err := Listen("unixpacket", filepath.Join(t.TempDir(), "run", "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if a, err = Dial(l.path); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func descriptorsNow(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// asNobody runs f on a thread of another user.
func asNobody(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		const nobody = 65534
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			done <- e
			return
		}
		done <- f()
	}()
	return <-done
}

func TestTheSocketIsRootsAlone(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "agent.sock")
	l, err := Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", name, info.Mode(), err, want)
		}
	}
	// Even where somebody has made it reachable, root alone is heard.
	if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(filepath.Dir(path), 0o755), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	heard := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = c.Receive()
			c.Close()
		}
		heard <- err
	}()
	if err := asNobody(func() error {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("H{}")); errors.Is(err, unix.EPIPE) {
			return nil
		}
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if n, err := c.Read(make([]byte, 10)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("it is not hung up: %d bytes and %w", n, err)
		}
		return nil
	}); err != nil {
		t.Errorf("another user: %v", err)
	}
	select {
	case err := <-heard:
		t.Errorf("another user was heard: %v", err)
	default:
	}
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(KindHello, nil); err != nil {
		t.Error(err)
	}
	if err := <-heard; err != nil {
		t.Errorf("root: %v", err)
	}
	c.Close()

	// Its directory must not be anybody's, and the path nobody's file.
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(path); err == nil || errors.Is(err, ErrNobody) {
		t.Errorf("dial in a directory that everybody can write to: %v", err)
	}
	if _, err := Listen("unixpacket", path); err == nil {
		t.Error("listen in a directory that everybody can write to")
	}
	if err := errors.Join(os.Chmod(filepath.Dir(path), 0o700), l.Close(), os.WriteFile(path, []byte("precious"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unixpacket", path); err == nil {
		t.Error("listen where there is a file")
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestASocketTakesThePlaceOfAnother(t *testing.T) {
	asRoot(t)
	path := filepath.Join(t.TempDir(), "run", "agent.sock")
	if _, err := Dial(path); !errors.Is(err, ErrNobody) {
		t.Errorf("no socket: %v, want ErrNobody", err)
	}
	first, err := Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	c, err := Dial(path)
	if err != nil {
		t.Fatalf("the second is not found once the first is closed: %v", err)
	}
	c.Close()
	// What a killed agent leaves is nobody, and in nobody's way.
	if err := second.UnixListener.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Dial(path); !errors.Is(err, ErrNobody) {
		t.Errorf("a socket that was left: %v, want ErrNobody", err)
	}
	third, err := Listen("unixpacket", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	a, b := pair(t)
	open := descriptorsNow(t)
	if err := a.Send(KindConns, strings.Repeat("x", maxMessage)); err == nil {
		t.Error("a message of more than it may have is sent")
	}
	if err := a.Send(KindConns, nil, make([]int, maxFDs+1)...); err == nil {
		t.Error("more descriptors than it may have are sent")
	}
	// A peer that does not keep to that is not understood, and leaks nothing.
	if _, _, err := a.c.WriteMsgUnix(make([]byte, maxMessage+10), unix.UnixRights(0, 1, 2), nil); err != nil {
		t.Fatal(err)
	}
	if m, err := b.Receive(); err == nil {
		t.Errorf("a message of %d bytes is received", len(m.Body))
	}
	if now := descriptorsNow(t); now != open {
		t.Errorf("%d descriptors, before %d", now, open)
	}
	if err := a.Send(KindHello, Hello{Version: "x"}, 0, 1); err != nil {
		t.Fatal(err)
	}
	m, err := b.Receive()
	if err != nil || len(m.FDs) != 2 {
		t.Fatalf("%v with %d descriptors", err, len(m.FDs))
	}
	m.CloseFDs()
	a.Close()
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v, want EOF", err)
	}
	if err := b.ReceiveWithin(time.Millisecond); err != nil {
		t.Error(err)
	}
}

// moving is a connection of files that stand for sockets.
func moving(t *testing.T, ns routing.Cookie, netns int, upstreams int) *router.Moving {
	open := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	at := netip.MustParseAddrPort("10.0.0.1:80")
	m := &router.Moving{Client: open(), Netns: netns, State: router.ConnState{
		Netns: ns, Name: strings.Repeat("n", 200), Dialled: at, Request: "opaque", Answer: "blind",
		Scan: &http1.ScannerState{Word: make([]byte, 200), Value: make([]byte, 200)}, Asked: make([]byte, 64),
	}}
	for range upstreams {
		m.State.Upstreams = append(m.State.Upstreams, router.UpstreamState{Addr: at})
		m.Upstreams = append(m.Upstreams, open())
	}
	return m
}

func inode(t *testing.T, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatalf("descriptor %d: %v", fd, err)
	}
	return st.Ino
}

// TestConnectionsArriveWithTheirOwnDescriptors: however many there are.
func TestConnectionsArriveWithTheirOwnDescriptors(t *testing.T) {
	a, b := pair(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var all []*router.Moving
	for i := range 300 {
		all = append(all, moving(t, routing.Cookie(i%7+1)<<60, int(null.Fd()), i%9))
	}
	open := descriptorsNow(t)
	batches, err := Batches(all)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, batch := range batches {
		if err := a.SendBatch(batch); err != nil {
			t.Fatal(err)
		}
		m, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.Connections()
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range got {
			want := batch.Moving[i]
			if inode(t, c.Client) != inode(t, want.Client) || inode(t, c.Netns) != inode(t, want.Netns) || len(c.Upstreams) != len(want.Upstreams) {
				t.Fatalf("connection %d has others' descriptors", n)
			}
			for j := range c.Upstreams {
				if inode(t, c.Upstreams[j]) != inode(t, want.Upstreams[j]) {
					t.Fatalf("connection %d has another's upstream", n)
				}
			}
			gotText, _ := json.Marshal(c.State)
			wantText, _ := json.Marshal(want.State)
			if string(gotText) != string(wantText) {
				t.Errorf("connection %d arrives as %s, was %s", n, gotText, wantText)
			}
			for _, fd := range append([]int{c.Client, c.Netns}, c.Upstreams...) {
				unix.Close(fd)
			}
			n++
		}
	}
	if n != len(all) {
		t.Errorf("%d connections have arrived, want %d", n, len(all))
	}
	if now := descriptorsNow(t); now != open {
		t.Errorf("%d descriptors, before %d", now, open)
	}
	if b, err := Batches(nil); err != nil || len(b) != 0 {
		t.Errorf("nothing takes %d messages, %v", len(b), err)
	}
}

// TestAMessageThatIsNotUnderstoodIsRefusedWhole: with what it brings.
func TestAMessageThatIsNotUnderstoodIsRefusedWhole(t *testing.T) {
	a, b := pair(t)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	open := descriptorsNow(t)
	state := `"State":{"Netns":1,"Dialled":"10.0.0.1:80","Dest":1,"Request":"head","Answer":"head","Upstreams":[{"Addr":"10.0.0.1:80"}],"Current":0%s}`
	known := fmt.Sprintf(state, "")
	for name, tc := range map[string]struct {
		text string
		fds  int
	}{
		"no JSON":                     {"teapot", 3},
		"a field of another version":  {`{"Namespaces":1,"All":[{"Netns":0,` + fmt.Sprintf(state, `,"HTTP2":true`) + `}]}`, 3},
		"too few descriptors":         {`{"Namespaces":1,"All":[{"Netns":0,` + known + `}]}`, 2},
		"too many":                    {`{"Namespaces":1,"All":[{"Netns":0,` + known + `}]}`, 4},
		"no such namespace":           {`{"Namespaces":1,"All":[{"Netns":1,` + known + `}]}`, 3},
		"a negative one":              {`{"Namespaces":1,"All":[{"Netns":-1,` + known + `}]}`, 3},
		"a negative number of them":   {`{"Namespaces":-1,"All":[]}`, 0},
		"an address that cannot be":   {`{"Namespaces":1,"All":[{"Netns":0,` + strings.ReplaceAll(known, "10.0.0.1:80", "10.0.0.1") + `}]}`, 3},
		"connections of no namespace": {`{"Namespaces":0,"All":[{"Netns":0,` + known + `}]}`, 2},
	} {
		fds := make([]int, tc.fds)
		for i := range fds {
			fds[i] = fd
		}
		if _, _, err := a.c.WriteMsgUnix([]byte("C"+tc.text), unix.UnixRights(fds...), nil); err != nil {
			t.Fatal(err)
		}
		m, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.Connections(); err == nil {
			t.Errorf("%s: %d connections", name, len(got))
		}
		if now := descriptorsNow(t); now != open {
			t.Errorf("%s: %d descriptors, before %d", name, now, open)
		}
	}
	// What a later version says besides, where that is harmless, is.
	if _, _, err := a.c.WriteMsgUnix([]byte(`H{"Protocol":1,"Colour":"blue"}`), nil, nil); err != nil {
		t.Fatal(err)
	}
	m, err := b.Receive()
	var hello Hello
	if err := errors.Join(err, m.Read(&hello, false)); err != nil || hello.Protocol != 1 {
		t.Errorf("%+v, %v", hello, err)
	}
}

func TestPlainListenersServeOthers(t *testing.T) {
	asRoot(t)
	l, err := Listen("unix", filepath.Join(t.TempDir(), "ready.sock"))
	if err != nil {
		t.Fatal(err)
	}
	p := l.Plain()
	defer p.Close()
	go func() {
		if c, err := p.Accept(); err == nil {
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	c, err := net.Dial("unix", l.path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}
