// SPDX-License-Identifier: Apache-2.0

// Package programs builds other people's Go programs that tests run: servers,
// clients and suites whose versions small modules of their own pin, so that
// nothing of them is a dependency of Sidetrack's. A module may hold programs of
// ours as well that want such libraries. Of programs that are not built it says whether
// a test has to do without, and it builds the agent for tests that run it as users do.
//
// What is built stays in a cache outside the checkout. Processes that want the
// same program at the same time build it once; all functions may be called
// concurrently. The package runs nothing but the go command.
package programs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Module is a folder with a go.mod that pins what is built.
type Module struct {
	// Dir is the folder.
	Dir string
	// Args are more arguments of "go build".
	Args []string
	// Ldflags are the linker's; "-s -w" when empty.
	Ldflags string
}

// Checkout returns the folder of Sidetrack's own go.mod.
var Checkout = func() func(context.Context) (string, error) {
	var mu sync.Mutex
	var known string
	return func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if known != "" {
			return known, nil
		}
		out, err := Output(ctx, exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/sidetrack-dev/sidetrack"))
		if err != nil {
			return "", fmt.Errorf("find the checkout: %w", err)
		}
		known = strings.TrimSpace(string(out))
		return known, nil
	}
}()

// Cache returns the folder for what is built of one kind; name has no slash.
func Cache(name string) (string, error) {
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(user, "sidetrack", name), nil
}

// Required returns the version of a module that the go.mod requires.
func (m Module) Required(path string) (string, error) {
	file := filepath.Join(m.Dir, "go.mod")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("find the version of %s: %w", path, err)
	}
	match := regexp.MustCompile(`(?m)^\s*(?:require\s+)?` + regexp.QuoteMeta(path) + `\s+(v\S+)`).FindSubmatch(text)
	if match == nil {
		return "", fmt.Errorf("%s does not require %s", file, path)
	}
	return string(match[1]), nil
}

// Sum is a hash of all files of the folder: programs with the same sum are the
// same, their own source included.
func (m Module) Sum() (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(m.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %d\n", strings.TrimPrefix(path, m.Dir), len(text))
		h.Write(text)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("read the module %s: %w", m.Dir, err)
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// Build makes the program of a package, unless it is in the cache already, and
// returns its path: the folder and the name. The folder's name has to tell one
// version of the program from another. A program's build is said on standard error.
func (m Module) Build(ctx context.Context, dir, name, pkg string) (string, error) {
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	unlock, err := Lock(ctx, filepath.Join(dir, "."+name+".lock"))
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	defer unlock()
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	fmt.Fprintf(os.Stderr, "building %s from %s\n", name, pkg)
	began := time.Now()
	unfinished := file + ".unfinished"
	ldflags := m.Ldflags
	if ldflags == "" {
		ldflags = "-s -w"
	}
	args := append([]string{"build", "-trimpath", "-ldflags", ldflags, "-o", unfinished}, m.Args...)
	cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
	cmd.Dir = m.Dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if _, err := Output(ctx, cmd); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	if err := os.Rename(unfinished, file); err != nil {
		return "", fmt.Errorf("keep %s: %w", name, err)
	}
	fmt.Fprintf(os.Stderr, "built %s in %.0f s\n", name, time.Since(began).Seconds())
	return file, nil
}

// Cached makes a program as Build does, in a folder of its kind's Cache that has the
// module's Sum in its name.
func (m Module) Cached(ctx context.Context, kind, name, pkg string) (string, error) {
	sum, err := m.Sum()
	if err != nil {
		return "", err
	}
	cache, err := Cache(kind)
	if err != nil {
		return "", err
	}
	return m.Build(ctx, filepath.Join(cache, filepath.Base(m.Dir)+"-"+sum+"-"+runtime.GOARCH), name, pkg)
}

// Lock waits until no other process holds the lock of that file, which it makes
// with its folder.
func Lock(ctx context.Context, file string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, fmt.Errorf("make the cache of programs: %w", err)
	}
	lock, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cache of programs: %w", err)
	}
	for unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			lock.Close()
			return nil, fmt.Errorf("wait for another process: %w", ctx.Err())
		}
	}
	return func() { lock.Close() }, nil
}

// Output runs a command and returns its standard output; the error has the end
// of its standard error.
func Output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = errors.Join(err, ctx.Err())
	}
	said := strings.TrimSpace(stderr.String())
	if len(said) > 2000 {
		said = "…" + said[len(said)-2000:]
	}
	if said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return stdout.Bytes(), fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
}
