// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// errNotNetns is the error for a file that is there but is no network
// namespace, as the file of "ip netns add" or of a CNI is until the namespace is
// mounted on it, and again when it has been unmounted.
var errNotNetns = errors.New("is not a network namespace")

// fileID identifies what a path leads to. As long as a namespace is held open,
// no other has its inode number.
type fileID struct{ dev, ino uint64 }

// identify returns what path leads to now.
func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fileID{}, err
	}
	return fileID{uint64(st.Dev), st.Ino}, nil
}

// openNetns opens a network namespace's file.
func openNetns(path string) (fd int, id fileID, err error) {
	// A path that names a FIFO or a device must not block or do anything.
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, fileID{}, err
	}
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err = unix.Fstatfs(fd, &fs); err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil && int64(fs.Type) != unix.NSFS_MAGIC {
		err = errNotNetns
	}
	if err == nil {
		var kind int
		if kind, err = unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err == nil && kind != unix.CLONE_NEWNET {
			err = errNotNetns
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fileID{}, err
	}
	return fd, fileID{uint64(st.Dev), st.Ino}, nil
}

// Do calls f on a thread that is in the network namespace ns (an open
// descriptor) and waits for it. Sockets made by f stay in that namespace. f must
// not start goroutines that rely on where they run.
func Do(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the own network namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		// A thread that does not get home ends with this goroutine, because it
		// stays locked: nobody else may run on it.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// cookie asks the kernel for the cookie of the namespace that ns is open on.
func cookie(ns int) (routing.Cookie, error) {
	var c uint64
	err := Do(ns, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("make a socket: %w", err)
		}
		defer unix.Close(s)
		if c, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
			return fmt.Errorf("read SO_NETNS_COOKIE (Linux 5.14): %w", err)
		}
		return nil
	})
	return routing.Cookie(c), err
}
