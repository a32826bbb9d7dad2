// SPDX-License-Identifier: Apache-2.0

// Command image packs Sidetrack's programs as container images into one archive
// as "docker save" makes it, without Docker and without a registry. What comes
// of the same source is the same, byte for byte.
//
//	go run ./deploy/image -o sidetrack.tar
//	ctr -n k8s.io images import sidetrack.tar
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sidetrack-dev/sidetrack/deploy"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// options say what is packed and under which name.
type options struct {
	output, registry, tag, arch string
	// built are binaries that are there already, by program.
	built map[string]string
}

func parse(args []string) (*options, error) {
	registry, tag, err := deploy.Images()
	if err != nil {
		return nil, err
	}
	o := &options{built: map[string]string{}}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	// An error says what is wrong, without a page of flags behind it.
	flags.Usage = func() {}
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.output, "o", "", "`file` to write, a tar archive")
	flags.StringVar(&o.registry, "registry", registry, "what is in front of the programs' names in the images' names")
	flags.StringVar(&o.tag, "tag", tag, "tag of the images, and the version that the programs print")
	flags.StringVar(&o.arch, "arch", runtime.GOARCH, "`architecture`: amd64 or arm64")
	flags.Func("binary", "`program=file`: pack this file instead of building the program; may be repeated", func(s string) error {
		program, file, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("it has to be program=file")
		}
		if _, ok := find(program); !ok {
			return fmt.Errorf("there is no program %q", program)
		}
		o.built[program] = file
		return nil
	})
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(os.Stderr)
		flags.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("%q is too much", flags.Arg(0))
	}
	if o.output == "" {
		return nil, errors.New("-o is missing: the file to write")
	}
	return o, nil
}

func run(args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "sidetrack-image-")
	if err != nil {
		return fmt.Errorf("make a folder to build in: %w", err)
	}
	defer os.RemoveAll(work)

	var images []namedImage
	for _, p := range programs {
		tag, err := name.NewTag(o.registry+"/"+p.name+":"+o.tag, name.StrictValidation)
		if err != nil {
			return fmt.Errorf("name the image: %w", err)
		}
		file := o.built[p.name]
		if file == "" {
			file = filepath.Join(work, p.name)
			if err := build(p.name, file, o); err != nil {
				return err
			}
		}
		image, err := pack(p, file, o)
		if err != nil {
			return err
		}
		images = append(images, namedImage{tag, image})
	}
	return write(o.output, images)
}

// build makes a static binary that says nothing about where it was built.
func build(program, file string, o *options) error {
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version="+o.tag, "-o", file,
		"github.com/sidetrack-dev/sidetrack/cmd/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+o.arch)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w", program, err)
	}
	return nil
}

// write writes the archive whole or not at all.
func write(file string, images []namedImage) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".image-")
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = writeArchive(f, images)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}
