// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// modules are what the tests need of what Debian has not built in.
var modules = []string{"veth", "bridge", "inet_diag", "tcp_diag", "udp_diag", "dummy"}

// pack writes an initramfs: the payload, a static busybox for tests that want
// a shell, and this kernel's modules.
func pack(out string, k *kernel, p *payload, o options) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("find busybox (Debian's package busybox-static): %w", err)
	}
	files := slices.Clone(p.files)
	files = append(files,
		file{name: "bin/busybox", from: busybox, mode: 0o755},
		file{name: "etc/hosts", data: []byte("127.0.0.1 localhost\n::1 localhost\n"), mode: 0o644},
		file{name: "etc/passwd", data: []byte("root:x:0:0:root:/tmp:/bin/sh\n"), mode: 0o644},
		file{name: "vm/tests", data: []byte(strings.Join(p.tests, "\n") + "\n"), mode: 0o644},
		file{name: "vm/flags", data: []byte(strings.Join(testFlags(o), "\n") + "\n"), mode: 0o644},
		file{name: "var/run", link: "/run"},
	)
	for _, name := range []string{"sh", "cat", "sleep", "true", "echo", "head", "ls", "mount"} {
		files = append(files, file{name: "bin/" + name, link: "busybox"})
	}
	mods, err := k.load(modules)
	if err != nil {
		return err
	}
	for i, m := range mods {
		// vminit loads them in the order of their names.
		files = append(files, file{name: fmt.Sprintf("vm/modules/%03d-%s", i, m.name), data: m.data, mode: 0o644})
	}
	f, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	defer f.Close()
	buf := bufio.NewWriterSize(f, 1<<20)
	if err := writeCPIO(buf, files, []string{"dev", "proc", "sys", "run", "tmp", "root"}); err != nil {
		return err
	}
	if err := errors.Join(buf.Flush(), f.Close()); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	return nil
}

func testFlags(o options) []string {
	// test2json is what "go test -json" passes: it marks the lines that are the
	// framework's own.
	flags := []string{"-test.v=test2json", "-test.timeout=" + o.timeout.String()}
	if o.short {
		flags = append(flags, "-test.short")
	}
	if o.run != "" {
		flags = append(flags, "-test.run="+o.run)
	}
	return flags
}

// module is one kernel module, uncompressed.
type module struct {
	name string
	data []byte
}

// load returns modules by name and what they depend on, dependencies first.
// Names that are built into the kernel are left out.
func (k *kernel) load(names []string) ([]module, error) {
	builtin, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the list of what is built in: %w", err)
	}
	in := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		in[moduleName(strings.TrimSpace(line))] = true
	}
	paths := map[string]string{}
	err = filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(path), ".ko") {
			paths[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the modules of %s: %w", k.release, err)
	}
	var out []module
	done := map[string]bool{}
	var add func(string) error
	add = func(name string) error {
		if in[name] || done[name] {
			return nil
		}
		done[name] = true
		path, ok := paths[name]
		if !ok {
			return fmt.Errorf("kernel %s has no module %s", k.release, name)
		}
		data, err := readModule(path)
		if err != nil {
			return err
		}
		// Debian makes modules.dep when a kernel is installed, which this one is not.
		deps, err := depends(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, d := range deps {
			if err := add(d); err != nil {
				return err
			}
		}
		out = append(out, module{name, data})
		return nil
	}
	for _, n := range names {
		if err := add(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// moduleName is the name of a module's file as the kernel writes it.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func readModule(path string) ([]byte, error) {
	if !strings.HasSuffix(path, ".xz") {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a module: %w", err)
		}
		return data, nil
	}
	data, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", path, err)
	}
	return data, nil
}

// depends reads a module's own list of what it needs.
func depends(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read the ELF header: %w", err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("read section .modinfo: %w", err)
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			names := strings.Split(string(list), ",")
			for i := range names {
				names[i] = moduleName(names[i])
			}
			return names, nil
		}
	}
	return nil, nil
}

// writeCPIO writes an archive in the format "newc", which is what the kernel
// unpacks (its Documentation/driver-api/early-userspace/buffer-format.rst).
// Folders come before what is in them.
func writeCPIO(w io.Writer, files []file, dirs []string) error {
	known := map[string]bool{".": true}
	var entries []file
	var mkdir func(string)
	mkdir = func(dir string) {
		if known[dir] {
			return
		}
		known[dir] = true
		mkdir(path.Dir(dir))
		entries = append(entries, file{name: dir, mode: fs.ModeDir | 0o755})
	}
	for _, d := range dirs {
		mkdir(d)
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	for _, f := range files {
		mkdir(path.Dir(f.name))
		entries = append(entries, f)
	}
	// The kernel's console is opened before init can mount anything.
	entries = append(entries, file{name: "dev/console", mode: fs.ModeDevice | fs.ModeCharDevice | 0o600})
	entries = append(entries, file{name: "TRAILER!!!"})
	for i, f := range entries {
		if err := writeEntry(w, i+1, f); err != nil {
			return fmt.Errorf("write %s to the initramfs: %w", f.name, err)
		}
	}
	return nil
}

func writeEntry(w io.Writer, inode int, f file) error {
	const (
		typeDir, typeFile, typeLink, typeChar = 0o040000, 0o100000, 0o120000, 0o020000
		consoleMajor, consoleMinor            = 5, 1
	)
	data := f.data
	if f.from != "" {
		var err error
		if data, err = os.ReadFile(f.from); err != nil {
			return err
		}
	}
	mode := typeFile | uint32(f.mode.Perm())
	var major, minor uint32
	switch {
	case f.mode.IsDir():
		mode = typeDir | uint32(f.mode.Perm())
	case f.mode&fs.ModeCharDevice != 0:
		mode = typeChar | uint32(f.mode.Perm())
		major, minor = consoleMajor, consoleMinor
	case f.link != "":
		mode, data = typeLink|0o777, []byte(f.link)
	}
	// inode, mode, uid, gid, links, time, size, device (2), its own device (2),
	// length of the name with its zero, checksum
	header := "070701"
	for _, n := range []uint32{
		uint32(inode), mode, 0, 0, 1, 0, uint32(len(data)), 0, 0, major, minor, uint32(len(f.name) + 1), 0,
	} {
		header += fmt.Sprintf("%08x", n)
	}
	head := header + f.name + "\x00"
	for _, b := range [][]byte{[]byte(head), pad(len(head)), data, pad(len(data))} {
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// pad is what is missing to a multiple of four.
func pad(n int) []byte { return make([]byte, -n&3) }
