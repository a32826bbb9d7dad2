// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
)

// facts are what an answer says, by place: "status", "header Content-Type",
// "$[0].price" in a body of JSON, "line 3" in one of text.
type facts map[string]string

// timely are headers that tell the time or how the bytes are framed: they differ
// without anything being different.
var timely = map[string]bool{
	"Date": true, "Age": true, "Connection": true, "Keep-Alive": true, "Transfer-Encoding": true, "Content-Length": true,
}

// maxLines is how many lines of text are compared each by itself.
const maxLines = 20_000

// read takes an answer apart. An answer that did not come is a fact as well.
func read(a *exchange.Answer, err error) facts {
	if err != nil {
		return facts{"error": root(err).Error()}
	}
	f := facts{"status": strconv.Itoa(a.Status) + " " + http.StatusText(a.Status)}
	for name, values := range a.Header {
		if !timely[name] {
			f["header "+name] = strings.Join(values, ", ")
		}
	}
	body, coded := a.Body, ""
	if !a.Truncated {
		body, coded = decoded(a)
	}
	switch v, ok := parse(body); {
	case len(a.Body) == 0:
		f["body"] = "(empty)"
	case a.Truncated:
		f["body"] = fmt.Sprintf("%d bytes, sha256 %x", a.Size, a.Digest)
	case coded != "":
		f["body"] = fmt.Sprintf("%d bytes in %s, sha256 %x", len(body), coded, sha256.Sum256(body))
	case ok:
		flatten(f, "$", v)
	case utf8.Valid(body) && bytes.Count(body, []byte("\n")) < maxLines:
		for i, line := range strings.Split(strings.TrimSuffix(string(body), "\n"), "\n") {
			f[fmt.Sprintf("line %d", i+1)] = line
		}
	default:
		f["body"] = fmt.Sprintf("%d bytes, sha256 %x", len(body), sha256.Sum256(body))
	}
	return f
}

// decoded undoes the Content-Encoding of a body (RFC 9110, section 8.4), so that what is
// noise in it can be told from what is not. It returns the body as it came, and in which
// encoding that is, where it knows that as little as where it would become too large.
func decoded(a *exchange.Answer) (body []byte, coded string) {
	coded = strings.ToLower(strings.TrimSpace(strings.Join(a.Header.Values("Content-Encoding"), ", ")))
	var in io.Reader
	var err error
	switch coded {
	case "", "identity":
		return a.Body, ""
	case "gzip", "x-gzip":
		in, err = gzip.NewReader(bytes.NewReader(a.Body))
	case "deflate":
		in, err = zlib.NewReader(bytes.NewReader(a.Body))
	default:
		return a.Body, coded
	}
	if err != nil {
		return a.Body, coded
	}
	plain, err := io.ReadAll(io.LimitReader(in, exchange.DefaultMaxBody+1))
	if err != nil || len(plain) > exchange.DefaultMaxBody {
		return a.Body, coded
	}
	return plain, ""
}

// root is the innermost error: those around it have addresses in them that differ
// each time.
func root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}

// parse reads a body that is one JSON value. Numbers stay as they are written.
func parse(body []byte) (any, bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil, false
	}
	_, err := d.Token()
	return v, errors.Is(err, io.EOF)
}

func flatten(f facts, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			f[at] = "{}"
		}
		for name, value := range v {
			flatten(f, at+member(name), value)
		}
	case []any:
		if len(v) == 0 {
			f[at] = "[]"
		}
		for i, value := range v {
			flatten(f, fmt.Sprintf("%s[%d]", at, i), value)
		}
	default:
		text, err := json.Marshal(v)
		if err != nil {
			text = []byte(fmt.Sprint(v))
		}
		f[at] = string(text)
	}
}

// member writes a name as JSONPath does (RFC 9535, section 2.5).
func member(name string) string {
	plain := name != "" && (name[0] < '0' || name[0] > '9')
	for _, r := range name {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r < 0x80 {
			plain = false
		}
	}
	if plain {
		return "." + name
	}
	return "['" + strings.ReplaceAll(strings.ReplaceAll(name, `\`, `\\`), "'", `\'`) + "']"
}
