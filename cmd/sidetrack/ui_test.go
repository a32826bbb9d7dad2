// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger/page"
)

func TestUISaysWhatIsMissingBeforeABrowserDoes(t *testing.T) {
	// The API server here has no ledger.
	_, said := sidetrack(t, "default", 1, "ui")
	for _, want := range []string{"this cluster has no page", "next: install Sidetrack"} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	_, said = sidetrack(t, "default", 2, "ui", "pr-42", "--all-namespaces")
	if !strings.Contains(said, "leave out --all-namespaces or pr-42") {
		t.Errorf("it says\n%s", said)
	}
}

func TestUIPrintsAnAddressThatLeadsToThePageUntilItIsInterrupted(t *testing.T) {
	server := httptest.NewServer(page.Handler())
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := start(ctx, t, "shop", "", "ui", "pr-42", "--server="+server.URL)
	deadline := time.Now().Add(time.Minute)
	for !strings.HasSuffix(r.out.String(), "\n") {
		if time.Now().After(deadline) {
			t.Fatalf("no address:\n%s\n%s", r.out.String(), r.err.String())
		}
		time.Sleep(10 * time.Millisecond)
	}
	link := strings.TrimSpace(r.out.String())
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar, Timeout: time.Minute}
	body := func(address string) string {
		answer, err := c.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v: %s", address, answer.Status, err, text)
		}
		return string(text)
	}
	where, _, _ := strings.Cut(link, "/enter")
	const path = "/apis/ledger.sidetrack.dev/v1alpha1/ui/"
	if text := body(link); !strings.Contains(text, path+"index.html#/shop/sandboxes/pr-42") {
		t.Errorf("it leads to\n%s", text)
	}
	if text := body(where + path + "app.js"); !strings.Contains(text, "SPDX") {
		t.Errorf("the page's script is\n%s", text)
	}
	cancel()
	if status := r.wait(t); status != 0 {
		t.Errorf("it ends with status %d: %s", status, r.err.String())
	}
}

// A browser is a program that is told an address: this one is curl, by the name that a
// desktop has for the browser.
func TestUIOpensTheAddressInABrowser(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	server := httptest.NewServer(page.Handler())
	defer server.Close()
	dir := t.TempDir()
	said, told := filepath.Join(dir, "said"), filepath.Join(dir, "told")
	script := fmt.Sprintf(`#!/bin/sh
printf '%%s' "$1" > %[1]s
%[2]s -sS --max-time 60 --cookie-jar %[3]s/jar --output %[4]s.new --write-out '%%{http_code}' "$1" > %[4]s.status 2>&1 && mv %[4]s.new %[4]s
`, told, curl, dir, said)
	if err := os.WriteFile(filepath.Join(dir, "xdg-open"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := start(ctx, t, "shop", "", "ui", "pr-42", "--open", "--server="+server.URL)
	var text string
	eventually(t, func() error {
		got, err := os.ReadFile(said)
		if err != nil {
			status, _ := os.ReadFile(said + ".status")
			return fmt.Errorf("the browser has fetched nothing (%w): %s\n%s\n%s", err, status, r.out.String(), r.err.String())
		}
		text = string(got)
		return nil
	})
	const path = "/apis/ledger.sidetrack.dev/v1alpha1/ui/"
	if !strings.Contains(text, path+"index.html#/shop/sandboxes/pr-42") {
		t.Errorf("it has fetched\n%s", text)
	}
	// It was let in: what it was given opens the page's files.
	link, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	where, _, _ := strings.Cut(string(link), "/enter")
	fetch := func(address string, args ...string) string {
		out, err := exec.CommandContext(t.Context(), curl, append(args, "-sS", "--max-time", "60", "--write-out", "\n%{http_code}", address)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v, %s", address, err, out)
		}
		return string(out)
	}
	if got := fetch(where+path+"app.js", "--cookie", filepath.Join(dir, "jar")); !strings.Contains(got, "SPDX") || !strings.HasSuffix(got, "200") {
		t.Errorf("the page's script is\n%s", got)
	}
	// Whoever has seen the browser's arguments comes too late; who reads the terminal does not.
	if got := fetch(string(link)); strings.HasSuffix(got, "200") {
		t.Errorf("the address opens a second time:\n%s", got)
	}
	printed := strings.TrimSpace(r.out.String())
	if got := fetch(printed); printed == string(link) || !strings.HasSuffix(got, "200") {
		t.Errorf("the address that is printed, %s, leads to\n%s", printed, got)
	}
	cancel()
	if status := r.wait(t); status != 0 {
		t.Errorf("it ends with status %d: %s", status, r.err.String())
	}
}

func TestUIWithoutABrowserSaysSoAndGoesOn(t *testing.T) {
	server := httptest.NewServer(page.Handler())
	defer server.Close()
	t.Setenv("PATH", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := start(ctx, t, "shop", "", "ui", "--open", "--server="+server.URL)
	eventually(t, func() error {
		if said := r.err.String(); !strings.Contains(said, "no browser could be opened") || !strings.Contains(said, "open the address yourself") {
			return fmt.Errorf("it says\n%s", said)
		}
		return nil
	})
	answer, err := http.Get(strings.TrimSpace(r.out.String()))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	cancel()
	if status := r.wait(t); status != 0 {
		t.Errorf("it ends with status %d: %s", status, r.err.String())
	}
}
