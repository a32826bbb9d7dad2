// SPDX-License-Identifier: Apache-2.0

package handover

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNobody says that no agent listens at a socket.
var ErrNobody = errors.New("no agent answers")

// Listener is a socket that root alone can reach.
type Listener struct {
	*net.UnixListener
	path string
	id   fileID
}

type fileID struct{ dev, ino uint64 }

// Listen makes an agent's socket at path, in the place of one that is there. Its
// network is "unixpacket" for handovers.
func Listen(network, path string) (*Listener, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	// One that is being made is never met: it is complete when it gets its name.
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove what was left of a socket: %w", err)
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: fresh})
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	id, err := identify(fresh)
	if err == nil {
		err = os.Chmod(fresh, 0o600)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", path, err), l.Close(), os.Remove(fresh))
	}
	return &Listener{l, path, id}, nil
}

// Close stops listening and removes the socket, unless another process has put
// its own there.
func (l *Listener) Close() error {
	err := l.UnixListener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	if id, e := identify(l.path); e == nil && id == l.id {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}

func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}

// Check reports why there must be no agent's socket at path. It makes the
// directory where there is none.
func Check(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at the socket's directory %s: %w", dir, err)
	}
	if st.Uid != 0 || st.Mode&0o022 != 0 {
		return fmt.Errorf("the socket's directory %s is not root's alone to write to (owner %d, mode %#o): anybody could stand in for the agent; choose another or chmod 700 it", dir, st.Uid, st.Mode&0o7777)
	}
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is no socket: choose another path", path)
	}
	return nil
}

// Plain returns l for servers that take any net.Listener.
func (l *Listener) Plain() net.Listener { return plain{l} }

type plain struct{ *Listener }

func (p plain) Accept() (net.Conn, error) { return p.UnixListener.Accept() }

// Accept waits for a peer that is root.
func (l *Listener) Accept() (*Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := CheckPeer(c); err != nil {
			c.Close()
			continue
		}
		return newConn(c), nil
	}
}

// Dial connects to the agent at path. The error wraps ErrNobody when there is
// none.
func Dial(path string) (*Conn, error) {
	if err := Check(path); err != nil {
		return nil, err
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Net: "unixpacket", Name: path})
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w at %s", ErrNobody, path)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the agent that runs: %w", err)
	}
	if err := CheckPeer(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return newConn(c), nil
}

// CheckPeer wants root at the other end.
func CheckPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("ask who the peer is: %w", credErr)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("the peer is user %d, not root", cred.Uid)
	}
	return nil
}
