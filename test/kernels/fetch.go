// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// kernel is one kernel, unpacked.
type kernel struct {
	release string // "6.1.0-56-cloud-amd64"
	image   string
	modules string // lib/modules/RELEASE
}

// fetch finds the newest of Debian's cloud kernels of a series ("6.1") in apt's
// lists, downloads and unpacks it, unless the cache has it.
func fetch(ctx context.Context, series string) (*kernel, error) {
	if runtime.GOARCH != "amd64" {
		return nil, errors.New("only amd64's kernels are known here")
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w", err)
	}
	cache := filepath.Join(user, "sidetrack", "kernels")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache folder: %w", err)
	}
	name, err := newest(ctx, series)
	if err == nil {
		if dir := filepath.Join(cache, name); !exists(dir) {
			err = download(ctx, name, dir)
		}
	}
	if err != nil {
		// Without a network an older one will do.
		have, globErr := filepath.Glob(filepath.Join(cache, "linux-image-*"))
		if globErr != nil {
			return nil, errors.Join(err, globErr)
		}
		for i := range have {
			have[i] = filepath.Base(have[i])
		}
		old := pick(have, series)
		if old == "" || ctx.Err() != nil {
			return nil, err
		}
		note("kernel %s: using %s of the cache: %v", series, old, err)
		name = old
	}
	release := strings.TrimPrefix(name, "linux-image-")
	k := &kernel{
		release: release,
		image:   filepath.Join(cache, name, "boot", "vmlinuz-"+release),
	}
	// Debian 13 has /usr/lib.
	for _, lib := range []string{"lib", "usr/lib"} {
		if dir := filepath.Join(cache, name, lib, "modules", release); exists(dir) {
			k.modules = dir
		}
	}
	if k.modules == "" || !exists(k.image) {
		return nil, fmt.Errorf("%s lacks its image or its modules; remove it and try again", filepath.Join(cache, name))
	}
	return k, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// newest names the newest package of a series that apt knows.
func newest(ctx context.Context, series string) (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if err := aptUpdate(ctx); err != nil {
				return "", err
			}
		}
		out, err := output(ctx, "apt-cache", "pkgnames", "linux-image-"+series)
		if err != nil {
			return "", err
		}
		if name := pick(strings.Fields(string(out)), series); name != "" {
			return name, nil
		}
	}
	return "", fmt.Errorf("apt knows no linux-image-%s*-cloud-amd64: add Debian 12 (bookworm) and its bookworm-security suite to apt's sources", series)
}

func aptUpdate(ctx context.Context) error {
	_, err := output(ctx, "apt-get", "update", "-q")
	return err
}

// pick returns the newest package of a series.
func pick(names []string, series string) string {
	want := regexp.MustCompile(`^linux-image-` + regexp.QuoteMeta(series) + `\.[0-9][^-]*(-[0-9]+)?-cloud-amd64$`)
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !want.MatchString(n) })
	if len(names) == 0 {
		return ""
	}
	return slices.MaxFunc(names, compareVersions)
}

var number = regexp.MustCompile(`[0-9]+`)

// compareVersions compares the numbers in two names, one after the other.
func compareVersions(a, b string) int {
	return slices.CompareFunc(number.FindAllString(a, -1), number.FindAllString(b, -1), func(a, b string) int {
		// What does not fit into an int is the largest int, which will do.
		x, _ := strconv.Atoi(a)
		y, _ := strconv.Atoi(b)
		return x - y
	})
}

// download unpacks a package into dir. Nothing is installed, and dir appears
// only when it is complete.
func download(ctx context.Context, name, dir string) error {
	note("downloading %s", name)
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return fmt.Errorf("make a folder for the download: %w", err)
	}
	defer os.RemoveAll(tmp)
	get := func() error {
		// apt's own user could not write here.
		_, err := output(ctx, "sh", "-c", `cd "$1" && apt-get -q -o APT::Sandbox::User=root download "$2"`, "sh", tmp, name)
		return err
	}
	if err := get(); err != nil {
		// Old lists name files that the mirror has no more.
		if err := aptUpdate(ctx); err != nil {
			return err
		}
		if err := get(); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get download %s: got %d packages: %w", name, len(debs), err)
	}
	root := filepath.Join(tmp, "root")
	if _, err := output(ctx, "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	if err := os.Rename(root, dir); err != nil {
		return fmt.Errorf("keep the kernel: %w", err)
	}
	return nil
}
