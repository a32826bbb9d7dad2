// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds a packet. The kernel's default buffers hold several.
	maxMessage = 64 << 10
	// maxFDs is the kernel's bound of descriptors in one packet (SCM_MAX_FD).
	maxFDs = 253
	// readWithin is how long the peer may take to make room for a message.
	readWithin = 10 * time.Second
)

// Conn is a conversation.
type Conn struct {
	c   *net.UnixConn
	buf []byte
	oob []byte
}

func newConn(c *net.UnixConn) *Conn {
	return &Conn{c: c, buf: make([]byte, maxMessage+1), oob: make([]byte, unix.CmsgSpace(maxFDs*4))}
}

// Close ends the conversation.
func (c *Conn) Close() error { return c.c.Close() }

// ReceiveWithin bounds how long Receive waits from now on; zero: for good.
func (c *Conn) ReceiveWithin(d time.Duration) error { return c.c.SetReadDeadline(after(d)) }

func after(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// Send sends a message; body may be nil. The descriptors stay the caller's.
func (c *Conn) Send(kind Kind, body any, fds ...int) error {
	packet := []byte{byte(kind)}
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("put message %c together: %w", kind, err)
		}
		packet = append(packet, text...)
	}
	if len(packet) > maxMessage || len(fds) > maxFDs {
		return fmt.Errorf("message %c of %d bytes and %d descriptors is too large", kind, len(packet), len(fds))
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if err := c.c.SetWriteDeadline(after(readWithin)); err != nil {
		return fmt.Errorf("send message %c: %w", kind, err)
	}
	if _, _, err := c.c.WriteMsgUnix(packet, oob, nil); err != nil {
		return fmt.Errorf("send message %c: %w", kind, err)
	}
	return nil
}

// Message is what has been received. Its descriptors are the receiver's.
type Message struct {
	Kind Kind
	Body []byte
	FDs  []int
}

// Receive waits for a message; io.EOF says that the peer has gone.
func (c *Conn) Receive() (Message, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, c.oob)
	if errors.Is(err, unix.ECONNRESET) {
		return Message{}, io.EOF
	}
	if err != nil {
		return Message{}, fmt.Errorf("receive a message: %w", err)
	}
	fds, err := descriptors(c.oob[:oobn])
	m := Message{FDs: fds}
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || n > maxMessage:
		// With MSG_CTRUNC this process has no room for another descriptor.
		err = errors.New("receive a message: it does not fit, or this process has no descriptors left (see its limit of open files)")
	case n == 0:
		// There is no empty message.
		err = io.EOF
	}
	if err != nil {
		m.CloseFDs()
		return Message{}, err
	}
	m.Kind, m.Body = Kind(c.buf[0]), bytes.Clone(c.buf[1:n])
	return m, nil
}

func descriptors(oob []byte) (fds []int, err error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("read a message's descriptors: %w", err)
	}
	for i := range all {
		got, err := unix.ParseUnixRights(&all[i])
		if err != nil {
			continue // something else than descriptors
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// CloseFDs closes the message's descriptors.
func (m *Message) CloseFDs() {
	for _, fd := range m.FDs {
		unix.Close(fd)
	}
	m.FDs = nil
}

// Read reads the message's body into v. Exact refuses what this version does not
// know: to go on without it could be wrong.
func (m *Message) Read(v any, exact bool) error {
	d := json.NewDecoder(bytes.NewReader(m.Body))
	if exact {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("read message %c: %w", m.Kind, err)
	}
	return nil
}
