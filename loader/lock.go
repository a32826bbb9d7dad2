// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another agent is there.
var ErrRunning = errors.New("another sidetrack agent is running")

// patience is how long another agent may take to vanish: one that was killed
// a moment ago still holds its lock and links until the kernel has reaped it.
var patience = 2 * time.Second

// pinDir returns the directory of our pins.
func pinDir(bpffs string) string { return filepath.Join(bpffs, "sidetrack") }

// lockDir takes the lock on the directory of pins. The lock is the open file's
// and goes with it, however this process ends.
func lockDir(dir string) (*os.File, error) {
	var f *os.File
	err := wait(func() (err error) {
		f, err = tryLockDir(dir)
		return err
	})
	return f, err
}

func tryLockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock the pins: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w: it holds the lock on %s; stop it first", ErrRunning, dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// wait tries again while try says ErrRunning, until patience is over.
func wait(try func() error) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := try()
		if !errors.Is(err, ErrRunning) || time.Now().After(deadline) {
			return err
		}
	}
}
