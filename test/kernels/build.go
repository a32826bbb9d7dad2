// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// touching are the packages, below the module's path, whose use by a test means
// that the test touches the kernel.
var touching = []string{"/test/lab", "/bpf", "/loader"}

// goPackage is what is needed of "go list -json".
type goPackage struct {
	ImportPath string
	Dir        string
	ForTest    string
	Deps       []string
	Module     *struct{ Path, Dir string }
}

// kernelPackages lists packages with tests whose test binary contains one of
// touching.
func kernelPackages(ctx context.Context, patterns []string) ([]goPackage, error) {
	args := append([]string{"list", "-test", "-json=ImportPath,Dir,ForTest,Deps,Module"}, patterns...)
	out, err := output(ctx, "go", args...)
	if err != nil {
		return nil, err
	}
	var pkgs []goPackage
	byPath := map[string]goPackage{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the output of go list: %w", err)
		}
		byPath[p.ImportPath] = p
		path, ok := strings.CutSuffix(p.ImportPath, ".test")
		if !ok || p.Module == nil {
			continue
		}
		if slices.ContainsFunc(touching, func(t string) bool {
			return slices.ContainsFunc(append(p.Deps, path), func(dep string) bool {
				dep, _, _ = strings.Cut(dep, " ") // "path [path.test]"
				return dep == p.Module.Path+t
			})
		}) {
			pkgs = append(pkgs, byPath[path])
		}
	}
	slices.SortFunc(pkgs, func(a, b goPackage) int { return strings.Compare(a.ImportPath, b.ImportPath) })
	return pkgs, nil
}

// payload is what is the same on every kernel.
type payload struct {
	files []file
	tests []string // lines of vminit's list: package, folder, binary, its own flags
}

// file is one file of the initramfs.
type file struct {
	name string // without the leading slash
	from string // path on this machine, or
	data []byte // the contents, or
	link string // a symbolic link's target
	mode os.FileMode
}

// build builds the static binaries: each package's tests, the machine's init
// and the agent.
func build(ctx context.Context, work string, pkgs []goPackage, o options) (*payload, error) {
	p := &payload{}
	goBuild := func(out string, args ...string) error {
		cmd := exec.CommandContext(ctx, "go", append(args, "-o", out)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
		return nil
	}
	module := pkgs[0].Module
	for _, main := range []struct{ path, name string }{
		{module.Path + "/test/kernels/vminit", "init"},
		{module.Path + "/cmd/sidetrackd", "bin/sidetrackd"},
	} {
		out := filepath.Join(work, filepath.Base(main.name))
		// "go build" wants the package last.
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, main.path)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return nil, fmt.Errorf("build %s: %w", main.path, err)
		}
		p.files = append(p.files, file{name: main.name, from: out, mode: 0o755})
	}
	for _, pkg := range pkgs {
		rel, err := filepath.Rel(module.Dir, pkg.Dir)
		if err != nil {
			return nil, fmt.Errorf("find %s in the module: %w", pkg.Dir, err)
		}
		out := filepath.Join(work, strings.ReplaceAll(rel, "/", "-")+".test")
		if err := goBuild(out, "test", "-c", "-ldflags=-s -w", pkg.ImportPath); err != nil {
			return nil, err
		}
		if _, err := os.Stat(out); errors.Is(err, os.ErrNotExist) {
			continue // no test files
		}
		dir := "src/" + rel
		p.files = append(p.files, file{name: dir + "/test", from: out, mode: 0o755})
		line := []string{pkg.ImportPath, "/" + dir, "./test"}
		if tests, all := part(pkg.ImportPath); !all && o.run == "" {
			run := "^(" + strings.Join(tests, "|") + ")$"
			list, err := output(ctx, out, "-test.list="+run)
			if err != nil {
				return nil, err
			}
			if n := bytes.Count(list, []byte("\n")); n != len(tests) {
				return nil, fmt.Errorf("%s has %d of the tests %q that are to be run: see partly", pkg.ImportPath, n, tests)
			}
			line = append(line, "-test.run="+run)
		}
		p.tests = append(p.tests, strings.Join(line, "\t"))
		data, err := tree(filepath.Join(pkg.Dir, "testdata"), dir+"/testdata")
		if err != nil {
			return nil, err
		}
		p.files = append(p.files, data...)
	}
	return p, nil
}

// tree lists the files below a folder, which need not exist.
func tree(from, to string) ([]file, error) {
	var files []file
	err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		files = append(files, file{name: to + "/" + rel, from: path, mode: 0o644})
		return nil
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list %s: %w", from, err)
	}
	return files, nil
}

// output runs a command and returns what it writes to its standard output. What
// it writes to its standard error is in the error.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out, nil
}
