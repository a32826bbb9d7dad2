// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
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
