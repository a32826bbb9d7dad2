// SPDX-License-Identifier: Apache-2.0

// Package npm installs the programs and libraries that tests want from npm, in
// the versions of package-lock.json, together with the Node.js that they run on. The
// lock file names no registry: npm's own setting decides.
//
// What is installed stays in a cache outside the checkout, by the lock file's
// hash. Processes that want it at the same time install it once; its functions may be
// called concurrently. Scripts of packages are not run at installation.
package npm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/programs"
)

// Packages are installed.
type Packages struct {
	// Node is the program.
	Node string
	// modules is the folder node_modules.
	modules string
}

// files say what is installed.
var files = []string{"package.json", "package-lock.json"}

// Install installs the packages, unless the cache has them.
func Install(ctx context.Context) (*Packages, error) {
	checkout, err := programs.Checkout(ctx)
	if err != nil {
		return nil, err
	}
	cache, err := programs.Cache("npm")
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	texts := map[string][]byte{}
	for _, name := range files {
		if texts[name], err = os.ReadFile(filepath.Join(checkout, "test", "npm", name)); err != nil {
			return nil, fmt.Errorf("read what npm is to install: %w", err)
		}
		h.Write(texts[name])
	}
	dir := filepath.Join(cache, hex.EncodeToString(h.Sum(nil)[:8])+"-"+runtime.GOARCH)
	p := &Packages{modules: filepath.Join(dir, "node_modules")}
	arch := map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	p.Node = filepath.Join(p.modules, "node-linux-"+arch, "bin", "node")
	if _, err := os.Stat(dir); err == nil {
		return p, nil
	}
	unlock, err := programs.Lock(ctx, dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return p, nil
	}
	return p, install(ctx, dir, texts)
}

// install makes the folder whole or not at all.
func install(ctx context.Context, dir string, texts map[string][]byte) error {
	fmt.Fprintln(os.Stderr, "installing test/npm")
	began := time.Now()
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return fmt.Errorf("install from npm: %w", err)
	}
	if err := os.MkdirAll(unfinished, 0o755); err != nil {
		return fmt.Errorf("install from npm: %w", err)
	}
	for name, text := range texts {
		if err := os.WriteFile(filepath.Join(unfinished, name), text, 0o644); err != nil {
			return fmt.Errorf("install from npm: %w", err)
		}
	}
	// Some packages want a newer Node.js than the one that npm itself runs on, and
	// get it: it is among them.
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--engine-strict=false", "--loglevel=error")
	cmd.Dir = unfinished
	if _, err := programs.Output(ctx, cmd); err != nil {
		return fmt.Errorf("install from npm: %w", err)
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return fmt.Errorf("install from npm: %w", err)
	}
	fmt.Fprintf(os.Stderr, "installed test/npm in %.0f s\n", time.Since(began).Seconds())
	return nil
}

// Command runs a file of a package, such as
// "@modelcontextprotocol/conformance/dist/index.js". home is the folder that stands
// for the user's.
func (p *Packages) Command(ctx context.Context, home, file string, args ...string) *exec.Cmd {
	return p.node(ctx, home, filepath.Join(p.modules, filepath.FromSlash(file)), args)
}

// Script runs a script of ours that imports packages. It is copied to home, a
// folder of the caller's.
func (p *Packages) Script(ctx context.Context, home, file string, args ...string) (*exec.Cmd, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the script: %w", err)
	}
	script := filepath.Join(home, filepath.Base(file))
	if err := os.WriteFile(script, text, 0o600); err != nil {
		return nil, fmt.Errorf("copy the script: %w", err)
	}
	link := filepath.Join(home, "node_modules")
	if err := os.Symlink(p.modules, link); err != nil && !os.IsExist(err) {
		return nil, fmt.Errorf("give the script its packages: %w", err)
	}
	return p.node(ctx, home, script, args), nil
}

func (p *Packages) node(ctx context.Context, home, file string, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.Node, append([]string{file}, args...)...)
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "PATH="+filepath.Dir(p.Node)+string(os.PathListSeparator)+os.Getenv("PATH"), "NO_COLOR=1")
	cmd.WaitDelay = 10 * time.Second
	return cmd
}
