// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sidetrack-dev/sidetrack/deploy"
)

// static builds a small static program for an architecture.
func static(t *testing.T, arch string) string {
	t.Helper()
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "main.go"), filepath.Join(dir, "binary")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return binary
}

// archive packs both programs.
func archive(t *testing.T, binary string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "images.tar")
	args = append([]string{"-o", file, "-binary", "sidetrackd=" + binary, "-binary", "sidetrack-controller=" + binary}, args...)
	if err := run(args); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAnImageHasOneFileAndSaysWhatItIs(t *testing.T) {
	binary := static(t, "arm64")
	file := archive(t, binary, "-registry", "registry.example/x", "-tag", "v1.2.3", "-arch", "arm64")
	for program, user := range map[string]string{"sidetrackd": "0:0", "sidetrack-controller": "65532:65532"} {
		tag, err := name.NewTag("registry.example/x/" + program + ":v1.2.3")
		if err != nil {
			t.Fatal(err)
		}
		image, err := tarball.ImageFromPath(file, &tag)
		if err != nil {
			t.Fatal(err)
		}
		config, err := image.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if config.Architecture != "arm64" || config.OS != "linux" || !config.Created.Equal(epoch) {
			t.Errorf("%s is for %s/%s, made at %v", program, config.OS, config.Architecture, config.Created)
		}
		if config.Config.User != user {
			t.Errorf("%s runs as %s, want %s", program, config.Config.User, user)
		}
		if diff := cmp.Diff([]string{"/" + program}, config.Config.Entrypoint); diff != "" {
			t.Error(diff)
		}
		if config.Config.Labels["org.opencontainers.image.version"] != "v1.2.3" || config.Config.Labels["org.opencontainers.image.title"] != program {
			t.Errorf("labels: %v", config.Config.Labels)
		}
		layers, err := image.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		content, err := layers[0].Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		files := tar.NewReader(content)
		h, err := files.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != program || h.Mode != 0o555 || h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch) {
			t.Errorf("the file is %+v", h)
		}
		got, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(binary); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the binary is another one (%v)", err)
		}
		if _, err := files.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("there is more than one file: %v", err)
		}
		content.Close()
	}
}

func TestTheSameBinariesMakeTheSameArchive(t *testing.T) {
	var archives [2][]byte
	for i := range archives {
		// Built in another folder, at another time.
		text, err := os.ReadFile(archive(t, static(t, "amd64"), "-arch", "amd64"))
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = text
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("the second differs from the first")
	}
}

func TestWhatCannotRunIsRefused(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dynamic, err := exec.LookPath("env")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "images.tar")
	for want, args := range map[string][]string{
		"-o is missing":   {},
		"too much":        {"-o", out, "more"},
		"no program":      {"-o", out, "-binary", "x=" + text},
		"program=file":    {"-o", out, "-binary", "sidetrackd"},
		"look at":         {"-o", out, "-binary", "sidetrackd=" + text},
		"not static":      {"-o", out, "-binary", "sidetrackd=" + dynamic},
		"not for amd64":   {"-o", out, "-arch", "amd64", "-binary", "sidetrackd=" + static(t, "arm64")},
		`architecture "`:  {"-o", out, "-arch", "vax", "-binary", "sidetrackd=" + text},
		"name the image:": {"-o", out, "-tag", "a b"},
	} {
		if err := run(args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*images*")); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v (%v)", left, err)
	}
}

// TestTheDockerfileMakesTheSame compares what the Dockerfile says with what is
// packed without Docker.
func TestTheDockerfileMakesTheSame(t *testing.T) {
	text, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, tag, err := deploy.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		stage := regexp.MustCompile(`(?ms)^FROM scratch AS ` + p.name + `$(.*?)(^FROM |\z)`).FindSubmatch(text)
		if stage == nil {
			t.Errorf("there is no stage %s", p.name)
			continue
		}
		for _, want := range []string{
			"COPY --from=build --chmod=0555 /out/" + p.name + " /" + p.name,
			"USER " + p.user,
			`ENTRYPOINT ["/` + p.name + `"]`,
			`org.opencontainers.image.title="` + p.name + `"`,
			`org.opencontainers.image.description="` + p.description + `"`,
		} {
			if !strings.Contains(string(stage[1]), want) {
				t.Errorf("stage %s lacks %s", p.name, want)
			}
		}
	}
	if !strings.Contains(string(text), "\nARG VERSION="+tag+"\n") {
		t.Errorf("it makes another version than %s", tag)
	}
	module, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	toolchain := regexp.MustCompile(`(?m)^toolchain go(.+)$`).FindSubmatch(module)
	if toolchain == nil || !strings.Contains(string(text), "golang:"+string(toolchain[1])) {
		t.Errorf("it builds with another Go than go.mod's %s", toolchain)
	}
}
