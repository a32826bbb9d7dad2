// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// PauseImage is the image of every pod's first process.
const PauseImage = "sidetrack.test/pause:1"

// Image is an image in the making: one layer, and how it is started.
type Image struct {
	// Name is the reference that pods use, with a tag.
	Name       string
	Entrypoint []string
	Env        []string
	User       string
	WorkingDir string

	files map[string]imageFile
}

type imageFile struct {
	mode fs.FileMode
	from string // a file of this machine,
	text []byte // or what is in it,
	link string // or where a symbolic link leads
	uid  int
}

// AddFile adds a file of this machine. A path that is there already is
// replaced.
func (m *Image) AddFile(path, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return fmt.Errorf("add a file to image %s: %w", m.Name, err)
	}
	m.add(path, imageFile{mode: info.Mode().Perm(), from: from})
	return nil
}

// AddText adds a file with this text.
func (m *Image) AddText(path, text string) { m.add(path, imageFile{mode: 0o644, text: []byte(text)}) }

// AddDir adds a folder that belongs to a user.
func (m *Image) AddDir(path string, mode fs.FileMode, uid int) {
	m.add(path, imageFile{mode: mode | fs.ModeDir, uid: uid})
}

// AddLink adds a symbolic link.
func (m *Image) AddLink(path, to string) {
	m.add(path, imageFile{mode: fs.ModeSymlink | 0o777, link: to})
}

func (m *Image) add(name string, f imageFile) {
	if m.files == nil {
		m.files = make(map[string]imageFile)
	}
	m.files[strings.TrimPrefix(path.Clean(name), "/")] = f
}

// AddProgram adds a program of this machine at the path it has here, with the
// dynamic libraries that it and the loader want.
func (m *Image) AddProgram(ctx context.Context, programs ...string) error {
	for _, p := range programs {
		if err := m.AddFile(p, p); err != nil {
			return err
		}
		out, err := output(ctx, exec.CommandContext(ctx, "ldd", p))
		if err != nil {
			return fmt.Errorf("find the libraries of %s: %w", p, err)
		}
		for line := range strings.Lines(string(out)) {
			// "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" or "/lib64/ld-linux-x86-64.so.2 (0x…)"
			for _, f := range strings.Fields(line) {
				if strings.HasPrefix(f, "/") {
					if err := m.AddFile(f, f); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// AddTree adds a folder of this machine with all that is in it, at the same
// path. Symbolic links stay what they are.
func (m *Image) AddTree(dir string) error { return m.AddOwnedTree(dir, dir, 0) }

// AddOwnedTree adds a folder of this machine at another path, as the property of
// a user.
func (m *Image) AddOwnedTree(dir, at string, uid int) error {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		inside := at + strings.TrimPrefix(name, dir)
		switch {
		case d.IsDir():
			m.AddDir(inside, info.Mode().Perm(), uid)
		case d.Type() == fs.ModeSymlink:
			to, err := os.Readlink(name)
			if err != nil {
				return err
			}
			m.AddLink(inside, to)
		default:
			m.add(inside, imageFile{mode: info.Mode().Perm(), from: name, uid: uid})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("add a folder to image %s: %w", m.Name, err)
	}
	return nil
}

// Write writes the image as a docker-archive.
func (m *Image) Write(file string) error {
	layer, err := m.layer()
	if err != nil {
		return err
	}
	sum := sha256.Sum256(layer)
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Entrypoint": m.Entrypoint, "Env": m.Env, "User": m.User, "WorkingDir": m.WorkingDir},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(sum[:])}},
	})
	if err != nil {
		return fmt.Errorf("describe image %s: %w", m.Name, err)
	}
	sum = sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]object{{"Config": configName, "RepoTags": []string{m.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return fmt.Errorf("describe image %s: %w", m.Name, err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, f := range []struct {
		name string
		text []byte
	}{{"layer.tar", layer}, {configName, config}, {"manifest.json", manifest}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.text)), Typeflag: tar.TypeReg}); err != nil {
			return fmt.Errorf("pack image %s: %w", m.Name, err)
		}
		if _, err := w.Write(f.text); err != nil {
			return fmt.Errorf("pack image %s: %w", m.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("pack image %s: %w", m.Name, err)
	}
	if err := os.WriteFile(file, archive.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write image %s: %w", m.Name, err)
	}
	return nil
}

func (m *Image) layer() ([]byte, error) {
	// Folders that nobody has added, from the top down.
	for name := range m.files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := m.files[dir]; !ok {
				m.AddDir(dir, 0o755, 0)
			}
		}
	}
	names := make([]string, 0, len(m.files))
	for name := range m.files {
		names = append(names, name)
	}
	slices.Sort(names)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, name := range names {
		if err := m.files[name].write(w, name); err != nil {
			return nil, fmt.Errorf("pack %s into image %s: %w", name, m.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack image %s: %w", m.Name, err)
	}
	return layer.Bytes(), nil
}

func (f imageFile) write(w *tar.Writer, name string) error {
	h := &tar.Header{Name: name, Mode: int64(f.mode.Perm()), Uid: f.uid, Gid: f.uid, Typeflag: tar.TypeReg}
	text := f.text
	switch {
	case f.mode.IsDir():
		h.Name, h.Typeflag = name+"/", tar.TypeDir
		if f.mode&fs.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
	case f.link != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
	case f.from != "":
		b, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		text = b
	}
	h.Size = int64(len(text))
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(w, bytes.NewReader(text))
	return err
}

// StaticProgram builds a Go package of this module as a static program.
func StaticProgram(ctx context.Context, pkg, file string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if _, err := output(ctx, cmd); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}

// pauseImage makes the archive of PauseImage.
func pauseImage(ctx context.Context) (string, error) {
	program := filepath.Join(Dir(), "pause")
	if err := StaticProgram(ctx, "github.com/sidetrack-dev/sidetrack/test/cluster/pause", program); err != nil {
		return "", err
	}
	m := &Image{Name: PauseImage, Entrypoint: []string{"/pause"}, User: "65535:65535"}
	if err := m.AddFile("/pause", program); err != nil {
		return "", err
	}
	archive := program + ".tar"
	return archive, m.Write(archive)
}
