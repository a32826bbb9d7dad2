// SPDX-License-Identifier: Apache-2.0

package standalone

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// A dialogue is a conversation of a client and a server over one connection,
// down to the bytes: each step is what one side does and what the other side
// must notice of it before the next step begins. In its text, {key} stands for
// a header line with a routing key, or for nothing.
type dialogue struct {
	name  string
	steps []step
}

type step struct {
	do   action
	text string
}

type action int

const (
	clientSays action = iota
	serverSays
	clientFIN // closes its sending side
	serverFIN
	serverCloses // both sides at once, in order
	clientResets
	serverResets
	bothSay      // the same text in both directions at the same time
	serverEnds   // says something and closes: what is not whole may come with the end
	serverBreaks // says something and resets: it need not come at all
	waits        // until what the test waits for has happened
	eachByte     // the client sends byte by byte, each in a segment of its own
	eachByteBack // the server does
)

func c(text string) step     { return step{clientSays, text} }
func sv(text string) step    { return step{serverSays, text} }
func slow(text string) step  { return step{eachByte, text} }
func slowS(text string) step { return step{eachByteBack, text} }

// patience is how long what is sure to happen may take on a very busy machine.
var patience = lab.Patience(20 * time.Second)

// ends are the two ends of one connection.
type ends struct {
	client  net.Conn
	accepts <-chan net.Conn
	server  net.Conn // nil until it has been accepted
	wait    <-chan struct{}
	waiting chan<- struct{} // is told that the dialogue waits; may be nil
}

// accept returns the server's end.
func (e *ends) accept() (net.Conn, error) {
	if e.server == nil {
		select {
		case conn, ok := <-e.accepts:
			if !ok {
				return nil, net.ErrClosed
			}
			e.server = conn
		case <-time.After(patience):
			return nil, errors.New("the server has got no connection")
		}
	}
	return e.server, nil
}

func (e *ends) close() {
	e.client.Close()
	if e.server != nil {
		e.server.Close()
	}
}

// play performs a dialogue and returns what went otherwise than it says.
func (d dialogue) play(e *ends, key string) error {
	for i, st := range d.steps {
		text := replaceKey(st.text, key)
		if err := e.step(st.do, text); err != nil {
			return fmt.Errorf("step %d (%.60q): %w", i, text, err)
		}
	}
	return nil
}

func (e *ends) step(do action, text string) error {
	switch do {
	case clientSays, eachByte:
		return e.transfer(true, text, do == eachByte)
	case serverSays, eachByteBack:
		return e.transfer(false, text, do == eachByteBack)
	case waits:
		if e.waiting != nil {
			e.waiting <- struct{}{}
		}
		<-e.wait
		return nil
	case bothSay:
		if _, err := e.accept(); err != nil {
			return err
		}
		there := make(chan error, 1)
		go func() { there <- e.transfer(true, text, false) }()
		return errors.Join(e.transfer(false, text, false), <-there)
	}
	server, err := e.accept()
	if err != nil {
		return err
	}
	switch do {
	case clientFIN:
		if err := e.client.(*net.TCPConn).CloseWrite(); err != nil {
			return fmt.Errorf("close the client's sending side: %w", err)
		}
		return wantEnd(server, io.EOF)
	case serverFIN:
		if err := server.(*net.TCPConn).CloseWrite(); err != nil {
			return fmt.Errorf("close the server's sending side: %w", err)
		}
		return wantEnd(e.client, io.EOF)
	case serverCloses:
		server.Close()
		return wantEnd(e.client, io.EOF)
	case serverEnds:
		if err := send(server, text, false); err != nil {
			return err
		}
		server.Close()
		if err := readExactly(e.client, text); err != nil {
			return err
		}
		return wantEnd(e.client, io.EOF)
	case serverBreaks:
		if err := send(server, text, false); err != nil {
			return err
		}
		pause()
		reset(server)
		_ = e.client.SetReadDeadline(time.Now().Add(patience))
		if b, err := io.ReadAll(e.client); !strings.HasPrefix(text, string(b)) || !errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("read %q, then %v", b, err)
		}
		return nil
	case clientResets:
		reset(e.client)
		return wantEnd(server, unix.ECONNRESET)
	case serverResets:
		reset(server)
		return wantEnd(e.client, unix.ECONNRESET)
	}
	return fmt.Errorf("unknown step %d", do)
}

// transfer sends text one way and wants exactly it at the other end.
func (e *ends) transfer(toServer bool, text string, byByte bool) error {
	sent := make(chan error, 1)
	from := func() (net.Conn, error) { return e.client, nil }
	to := e.accept
	if !toServer {
		from, to = to, from
	}
	src, err := from()
	if err != nil {
		return err
	}
	go func() { sent <- send(src, text, byByte) }()
	dst, err := to()
	if err != nil {
		return err
	}
	if err := readExactly(dst, text); err != nil {
		return err
	}
	return <-sent
}

func send(conn net.Conn, text string, byByte bool) error {
	if err := conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if !byByte {
		_, err := io.WriteString(conn, text)
		return err
	}
	for i := range len(text) {
		if _, err := io.WriteString(conn, text[i:i+1]); err != nil {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
	return nil
}

// wantEnd wants the next thing that the reader notices to be this end.
func wantEnd(conn net.Conn, want error) error {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	surplus := make([]byte, 200)
	n, err := conn.Read(surplus)
	if n > 0 {
		return fmt.Errorf("bytes that nobody has sent: %q", surplus[:n])
	}
	if !errors.Is(err, want) {
		return fmt.Errorf("reading ended with %v, want %w", err, want)
	}
	return nil
}

// reset closes a connection with RST.
func reset(conn net.Conn) {
	_ = conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// way is one way from a client to a server.
type way struct {
	name string
	from *lab.Pod
	to   *lab.Pod // whose server is meant to be reached
	key  string
	// ip is the address that is dialled: the ClusterIP, or an endpoint's.
	ip string
}

// ways are the ways on which a dialogue must be the same: untagged and tagged.
func (s *shop) ways() []way {
	if s.agent == nil {
		return []way{
			{"without a key", s.client, s.base, "", wideIP},
			{"with a key", s.client, s.base, "X-Sidetrack-Key: " + keyA + "\r\n", wideIP},
		}
	}
	return []way{
		{"untagged", s.client, s.base, "", wideIP},
		{"tagged a", s.client, s.forkA, "X-Sidetrack-Key: " + keyA + "\r\n", wideIP},
		{"tagged b, endpoint dialled, IPv6", s.client, s.forkB, "baggage: x=y;p=q,sidetrack=" + keyB + ",z=1\r\n", s.base.IPv6.String()},
		{"redirected flow", s.tester, s.forkA, "", wideIP},
	}
}

// opaqueWays are the ways of connections in which no key can be.
func (s *shop) opaqueWays() []way {
	fork := s.base
	if s.agent != nil {
		fork = s.forkA
	}
	return []way{
		{"captured", s.client, s.base, "", wideIP},
		{"captured, endpoint dialled, IPv6", s.client, s.base, "", s.base.IPv6.String()},
		{"redirected flow", s.tester, fork, "", wideIP6},
		{"with inject", s.runner, fork, "", wideIP},
	}
}

// open dials a way at a port of its own, where the right server listens. The
// others listen as well and must hear nothing.
func (s *shop) open(t *testing.T, w way) (*ends, func() error) {
	t.Helper()
	n := s.nextPort()
	var right <-chan net.Conn
	var wrong []<-chan net.Conn
	for _, p := range s.places() {
		conns := rawServer(t, p, n)
		if p == w.to {
			right = conns
		} else {
			wrong = append(wrong, conns)
		}
	}
	conn, err := w.from.Dial("tcp", net.JoinHostPort(w.ip, fmt.Sprint(n)))
	if err != nil {
		t.Fatal(err)
	}
	e := &ends{client: conn, accepts: right}
	t.Cleanup(e.close)
	return e, func() error {
		for _, conns := range wrong {
			if err := heardNothing(conns); err != nil {
				return err
			}
		}
		return nil
	}
}

// heardNothing is an error when a server has got bytes. A connection alone is
// none: the router may dial before it knows.
func heardNothing(conns <-chan net.Conn) error {
	for {
		select {
		case conn, ok := <-conns:
			if !ok {
				return nil
			}
			_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			b := make([]byte, 500)
			n, _ := conn.Read(b)
			conn.Close()
			if n > 0 {
				return fmt.Errorf("a server that was not meant got %q", b[:n])
			}
		default:
			return nil
		}
	}
}

// playAll performs each dialogue on each way.
func playAll(t *testing.T, s *shop, ways []way, all []dialogue) {
	for _, d := range all {
		t.Run(d.name, func(t *testing.T) {
			for _, w := range ways {
				t.Run(w.name, func(t *testing.T) {
					e, strangers := s.open(t, w)
					if err := d.play(e, w.key); err != nil {
						t.Error(err)
					}
					e.close()
					if err := strangers(); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// pause is long enough for two writes to be two segments.
func pause() { time.Sleep(time.Millisecond) }

// readExactly wants text to be what comes next.
func readExactly(conn net.Conn, text string) error {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	got := make([]byte, len(text))
	n, err := io.ReadFull(conn, got)
	if err != nil {
		return fmt.Errorf("only %d of %d bytes came through (%.200q): %w", n, len(text), got[:n], err)
	}
	if string(got) != text {
		return fmt.Errorf("other bytes came through:\n got %.400q\nwant %.400q", got, text)
	}
	return nil
}

func replaceKey(text, key string) string { return strings.ReplaceAll(text, "{key}", key) }
