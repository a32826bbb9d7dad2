// SPDX-License-Identifier: Apache-2.0

package page

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

func ask(t *testing.T, method, path, etag string) (*http.Response, string) {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	if etag != "" {
		r.Header.Set("If-None-Match", etag)
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Result(), string(body)
}

func TestFilesComeWithTheirTypeTheirTagAndThePolicy(t *testing.T) {
	for name, want := range map[string]string{
		"":           "text/html; charset=utf-8",
		"index.html": "text/html; charset=utf-8",
		"app.js":     "text/javascript; charset=utf-8",
		"preact.mjs": "text/javascript; charset=utf-8",
		"style.css":  "text/css; charset=utf-8",
		"icon.svg":   "image/svg+xml",
	} {
		answer, body := ask(t, "GET", root+name, "")
		if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != want || body == "" {
			t.Errorf("%s: %s, %s, %d bytes", name, answer.Status, answer.Header.Get("Content-Type"), len(body))
		}
		for header, value := range map[string]string{"Content-Security-Policy": Policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"} {
			if got := answer.Header.Get(header); got != value {
				t.Errorf("%s: %s is %q, want %q", name, header, got, value)
			}
		}
		if again, body := ask(t, "GET", root+name, answer.Header.Get("Etag")); again.StatusCode != http.StatusNotModified || body != "" {
			t.Errorf("%s, which has not changed: %s and %d bytes", name, again.Status, len(body))
		}
	}
}

func TestWhatIsNotAFileOfThePageIsNotFoundAndNothingIsWritten(t *testing.T) {
	for _, path := range []string{root + "doc.go", root + "../page.go", root + "static", "/etc/passwd"} {
		if answer, _ := ask(t, "GET", path, ""); answer.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, answer.Status)
		}
	}
	if answer, _ := ask(t, "POST", root, ""); answer.StatusCode != http.StatusMethodNotAllowed || answer.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %s", answer.Status)
	}
}

// TestNoFileNamesAnotherPlace finds what a policy would stop in a browser before it
// is there: addresses, and code made out of text.
func TestNoFileNamesAnotherPlace(t *testing.T) {
	entries, err := static.ReadDir("static")
	if err != nil {
		t.Fatal(err)
	}
	outside := regexp.MustCompile(`(?:src|href|url|import|fetch)\W{1,3}(?:https?:)?//|innerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function`)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".mjs") || strings.HasSuffix(e.Name(), ".txt") {
			continue // Others' files, which the policy holds for as well.
		}
		text, err := static.ReadFile("static/" + e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if found := outside.Find(text); found != nil {
			t.Errorf("%s has %q", e.Name(), found)
		}
	}
}

// TestOthersFilesComeWithTheirLicenceAndAHash sees that what vendor.sh copies can
// be told where it is from.
func TestOthersFilesComeWithTheirLicenceAndAHash(t *testing.T) {
	text, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var lock struct {
		Packages map[string]struct{ Version, Integrity, License, Resolved string }
	}
	if err := json.Unmarshal(text, &lock); err != nil {
		t.Fatal(err)
	}
	for name, p := range lock.Packages {
		if name != "" && (!strings.HasPrefix(p.Integrity, "sha512-") || p.License != "MIT" || p.Resolved != "") {
			t.Errorf("%s in package-lock.json: integrity %q, licence %q, from %q", name, p.Integrity, p.License, p.Resolved)
		}
	}
	for _, name := range []string{"preact", "dagre"} {
		licence, err := static.ReadFile("static/" + name + ".LICENSE.txt")
		if err != nil || !strings.Contains(string(licence), "Permission is hereby granted") {
			t.Errorf("%s has no licence beside it: %v", name, err)
		}
	}
}

// TestTheModel has Node run the tests of what records mean.
func TestTheModel(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out, err := exec.CommandContext(t.Context(), node, "--test", "testdata/").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
