// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// program is what an image is made of: one static binary, and nothing else.
type program struct {
	name, description string
	// user is who it runs as unless the pod says otherwise.
	user string
}

// Each has an image of its own: every node pulls the agent's, and the controller
// has no use for a program that loads BPF.
var programs = []program{
	{name: "sidetrackd", description: "Sidetrack's node agent", user: "0:0"},
	{name: "sidetrack-controller", description: "Sidetrack's controller", user: "65532:65532"},
}

func find(name string) (program, bool) {
	for _, p := range programs {
		if p.name == name {
			return p, true
		}
	}
	return program{}, false
}

// epoch is when everything in an image was made, since the day of the build
// would tell two builds of one source apart.
var epoch = time.Unix(0, 0).UTC()

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// pack makes an image of a binary.
func pack(p program, file string, o *options) (v1.Image, error) {
	if err := check(file, o.arch); err != nil {
		return nil, err
	}
	archive, err := layer(p.name, file)
	if err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.name, err)
	}
	image, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer:   l,
		History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "go run ./deploy/image"},
	})
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.name, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.name, err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", o.arch, v1.Time{Time: epoch}
	config.Config = v1.Config{
		Entrypoint: []string{"/" + p.name},
		User:       p.user,
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":       p.name,
			"org.opencontainers.image.description": p.description,
			"org.opencontainers.image.version":     o.tag,
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.source":      "https://github.com/sidetrack-dev/sidetrack",
		},
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, fmt.Errorf("pack %s: %w", p.name, err)
	}
	return image, nil
}

// check refuses what could not run from scratch: another architecture, or a
// binary that wants a loader and libraries.
func check(file, arch string) error {
	machine, ok := machines[arch]
	if !ok {
		return fmt.Errorf("architecture %q: use amd64 or arm64", arch)
	}
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("look at %s: %w", file, err)
	}
	defer f.Close()
	if f.Machine != machine {
		return fmt.Errorf("%s is for %v, and not for %s", file, f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", file)
		}
	}
	return nil
}

// layer returns a file system of one file.
func layer(name, file string) ([]byte, error) {
	binary, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(binary)), Mode: 0o555, ModTime: epoch, Format: tar.FormatPAX}); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	if _, err := w.Write(binary); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack %s: %w", name, err)
	}
	return b.Bytes(), nil
}
