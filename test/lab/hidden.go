// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// removeHidden removes a file on which something is mounted below a later mount of its
// folder, where no path leads: ip(8) mounts /run/netns on itself when it first makes a
// namespace, and hides what has been mounted there before. The kernel does not remove
// such a file, but it does where the file is no mount point in the mount namespace of
// whoever asks, and then takes the mounts on it away in all the others (since Linux
// 3.18, commit 8ed936b5671b). So this is done in a mount namespace of its own, in which
// the folder's mounts are taken away, one after the other.
func removeHidden(path string) error {
	return onThreadOfItsOwn(func() error {
		if err := leaveMounts(); err != nil {
			return err
		}
		for {
			folder := unix.Unmount(filepath.Dir(path), unix.MNT_DETACH)
			err := unmount(path)
			if err == nil {
				err = os.Remove(path)
			}
			if !errors.Is(err, unix.EBUSY) || folder != nil {
				return err
			}
		}
	})
}

// onThreadOfItsOwn calls f on a thread that ends with it: it may make of that what is of
// no use to others. It is not the first thread, which never ends and whose namespaces
// are what others take for the process's.
func onThreadOfItsOwn(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			err := onThreadOfItsOwn(f) // as long as this goroutine has the first
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// leaveMounts has the thread have a mount namespace of its own, out of which nothing
// spreads.
func leaveMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts in a namespace: %w", err)
	}
	return nil
}
