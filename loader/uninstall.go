// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Uninstall takes off what an agent that is gone has left in force below bpffs:
// flow redirects, maps and their pins; nothing else and nobody else's. It is no
// error when there is nothing. While an agent runs it does nothing and answers
// ErrRunning. A nil logger logs nothing.
func Uninstall(bpffs string, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir := pinDir(bpffs)
	ok, err := onBPFFS(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && !ok {
		log.Info("nothing is installed", "bpffs", bpffs)
		return nil
	}
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	defer lock.Close()
	if err := removeLeftovers(dir); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}

	var errs []error
	// In the reverse order of attaching: applications are shown what they dialled
	// for as long as anything is redirected.
	for i := len(flowPrograms) - 1; i >= 0; i-- {
		errs = append(errs, removeLink(filepath.Join(dir, flowPrograms[i].name)))
	}
	for _, name := range mapNames {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove map: %w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	switch err := os.Remove(dir); {
	case errors.Is(err, unix.ENOTEMPTY):
		log.Warn("the directory of pins holds files that are not ours; leaving it", "dir", dir)
	case err != nil:
		return fmt.Errorf("uninstall: %w", err)
	}
	log.Info("uninstalled", "bpffs", bpffs)
	return nil
}

// removeLink takes a pinned link off. The pin's end alone would do that as well,
// but some time later.
func removeLink(path string) error {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open link %s: %w", path, err)
	}
	defer l.Close()
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove link: %w", err)
	}
	// The cgroup may be gone, and the link with it.
	if err := l.Detach(); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("detach link %s: %w", path, err)
	}
	return nil
}
