// SPDX-License-Identifier: Apache-2.0

package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"
)

// Resource is what the API server takes the page's folder for: its files are below
// /apis/ledger.sidetrack.dev/v1alpha1/ui/.
const Resource = "ui"

// Index is the name of the file to begin with.
const Index = "index.html"

// Policy is the Content-Security-Policy of the page: it runs no script and uses no
// style that is not one of its files, talks to the server that it comes from and
// nobody else, makes no markup out of text, and is shown in no frame.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

//go:embed static
var static embed.FS

// types are the media types of files by their names' ends: a system's own list,
// which package mime reads, may have another for them.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".mjs":  "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

type file struct {
	text            []byte
	mediaType, etag string
}

// Handler returns what serves the page's files: the last part of a request's path
// names one of them, whatever is before it, and none means Index.
func Handler() http.Handler {
	return handler(files())
}

type handler map[string]file

func files() map[string]file {
	all := map[string]file{}
	err := fs.WalkDir(static, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		mediaType, ok := types[path.Ext(name)]
		if !ok {
			return fmt.Errorf("%s: no media type is known for it", name)
		}
		all[path.Base(name)] = file{text, mediaType, tag(text)}
		return nil
	})
	if err != nil {
		panic(err) // The files are in the binary: a test has seen them all.
	}
	return all
}

// tag is an Etag that another text does not have.
func tag(text []byte) string {
	sum := sha256.Sum256(text)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:18]) + `"`
}

func (h handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", Policy)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "the page is read only: use GET", http.StatusMethodNotAllowed)
		return
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if name == "" {
		name = Index
	}
	f, ok := h[name]
	if !ok {
		http.Error(w, fmt.Sprintf("the page has no file %q: begin with %s", name, Index), http.StatusNotFound)
		return
	}
	header.Set("Content-Type", f.mediaType)
	header.Set("Etag", f.etag)
	// Asked for again each time, and answered in a few bytes while it is the same: an
	// old file beside a new one would be worse than slow.
	header.Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(f.text))
}
