// SPDX-License-Identifier: Apache-2.0

package compare

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
)

func TestADifferenceBehindWhatIsKeptOfABodyIsOne(t *testing.T) {
	send := side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, _ int64) {
		fmt.Fprintf(rw, "%s%t", strings.Repeat("x", exchange.DefaultMaxBody), tagged)
	})
	r := compareOnce(t, send, Options{Samples: 2})
	if len(r.Differences) != 1 || r.Differences[0].Where != "body" {
		t.Errorf("differences %v, noise %v: want the body's", places(r.Differences), r.Noise)
	}
}

// encoded writes a body in a Content-Encoding.
func encoded(t *testing.T, rw http.ResponseWriter, encoding, text string) {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch encoding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "deflate":
		w = zlib.NewWriter(&b)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	rw.Header().Set("Content-Encoding", encoding)
	_, _ = rw.Write(b.Bytes())
}

func TestNoiseInAnEncodedBodyDoesNotHideADifference(t *testing.T) {
	for _, encoding := range []string{"gzip", "deflate"} {
		send := side(t, func(rw http.ResponseWriter, _ *http.Request, tagged bool, n int64) {
			encoded(t, rw, encoding, fmt.Sprintf(`{"id": %d, "fork": %t}`, n, tagged))
		})
		r := compareOnce(t, send, Options{})
		if d := cmp.Diff([]string{"$.fork: false -> true"}, places(r.Differences)); d != "" {
			t.Errorf("%s: differences (-want +got):\n%s", encoding, d)
		}
		if d := cmp.Diff([]string{"$.id"}, r.Noise); d != "" {
			t.Errorf("%s: noise (-want +got):\n%s", encoding, d)
		}
	}
}

func TestWhatCannotBeDecodedIsComparedAsItCame(t *testing.T) {
	for name, c := range map[string]struct {
		encoding string
		body     []byte
	}{
		"another encoding":      {"br", []byte("{}")},
		"several":               {"gzip, br", []byte("{}")},
		"not what it says":      {"gzip", []byte("{}")},
		"larger than it may be": {"gzip", zeros(t)},
	} {
		got := read(&exchange.Answer{Status: 200, Header: http.Header{"Content-Encoding": {c.encoding}}, Body: c.body}, nil)
		if want := fmt.Sprintf("%d bytes in %s, sha256 ", len(c.body), c.encoding); !strings.HasPrefix(got["body"], want) {
			t.Errorf("%s: the body is %q, want %q", name, got["body"], want)
		}
	}
}

// zeros is a small body that becomes too large.
func zeros(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(make([]byte, exchange.DefaultMaxBody+1)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAForkThatHangsIsNotAskedAgainAndAgain(t *testing.T) {
	asked := 0
	send := func(_ context.Context, _ exchange.Request, tagged bool) (*exchange.Answer, error) {
		if tagged {
			asked++
			return nil, fmt.Errorf("GET http://front.shop/: %w", &exchange.TimeoutError{After: 30 * time.Second})
		}
		return &exchange.Answer{Status: 200, Body: []byte("fine")}, nil
	}
	r := compareOnce(t, send, Options{})
	if asked != maxLate || !r.TimedOut {
		t.Errorf("it has been asked %d times, and the result says that it took too long: %t", asked, r.TimedOut)
	}
	if got := places(r.Differences); len(got) == 0 || got[0] != "error: (absent) -> no answer within 30s" {
		t.Errorf("differences %q", got)
	}
}
