// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"time"

	"golang.org/x/sys/unix"
)

// connectWithin is how long a connection may take that a signal has interrupted.
const connectWithin = time.Minute

// Connect is connect(2) of a blocking socket. Go's own signals interrupt it on
// sockets that have a timeout (signal(7)); the connection goes on then, and is
// waited for.
func Connect(fd int, to unix.Sockaddr) error {
	err := unix.Connect(fd, to)
	if err != unix.EINTR {
		return err
	}
	return Connected(fd)
}

// ConnectSending is sendto(2) of a blocking socket that connects at the same time (TCP
// Fast Open, RFC 7413), interrupted or not. If it was, the server may be sent the data twice.
func ConnectSending(fd int, data []byte, to unix.Sockaddr) error {
	err := unix.Sendto(fd, data, unix.MSG_FASTOPEN, to)
	if err != unix.EINTR {
		return err
	}
	if err := Connected(fd); err != nil {
		return err
	}
	_, err = unix.Write(fd, data)
	return err
}

// Connected waits for what connect(2) has begun, and returns what became of it.
func Connected(fd int) error {
	n, err := 0, error(unix.EINTR)
	for err == unix.EINTR {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(connectWithin.Milliseconds()))
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return unix.ETIMEDOUT
	}
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}
