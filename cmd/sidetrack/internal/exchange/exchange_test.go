// SPDX-License-Identifier: Apache-2.0

package exchange

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func TestARequestIsSentAsItIsWithItsKeyAndItsTrace(t *testing.T) {
	got := make(chan *http.Request, 1)
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rw.Header().Set("X-Body", string(body))
		rw.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(rw, strings.Repeat("x", 100))
		got <- r
	}))
	defer s.Close()
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if address != "front.shop:80" {
			t.Errorf("it dials %s", address)
		}
		var d net.Dialer
		return d.DialContext(ctx, network, s.Listener.Addr().String())
	}
	header := http.Header{"Host": {"shop.example"}, "Baggage": {"a=1"}, "x-lower": {"y"}}
	a, err := Send(t.Context(), dial, Request{Method: "PUT", URL: "front.shop/a?b=c", Header: header, Body: []byte("hello"), Key: "key-12345", MaxBody: 10})
	if err != nil {
		t.Fatal(err)
	}
	r := <-got
	if r.Method != "PUT" || r.URL.String() != "/a?b=c" || r.Host != "shop.example" || r.Header.Get("X-Lower") != "y" {
		t.Errorf("the request is %s %s to %s: %v", r.Method, r.URL, r.Host, r.Header)
	}
	if b := strings.Join(r.Header.Values("Baggage"), ","); b != "a=1,sidetrack=key-12345" {
		t.Errorf("baggage %q", b)
	}
	if len(header["Baggage"]) != 1 {
		t.Errorf("the caller's headers have been changed: %v", header)
	}
	if parts := strings.Split(r.Header.Get("Traceparent"), "-"); len(parts) != 4 || parts[0] != "00" || parts[1] != a.TraceID || len(parts[2]) != 16 {
		t.Errorf("traceparent %q, trace %s", r.Header.Get("Traceparent"), a.TraceID)
	}
	if a.Status != http.StatusTeapot || len(a.Body) != 10 || !a.Truncated || a.Header.Get("X-Body") != "hello" {
		t.Errorf("the answer is %+v", a)
	}
	// A trace that is there is kept.
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	a, err = Send(t.Context(), dial, Request{URL: "http://front.shop", Header: http.Header{"traceparent": {"00-" + trace + "-00f067aa0ba902b7-01"}}})
	if err != nil {
		t.Fatal(err)
	}
	if r := <-got; a.TraceID != trace || r.Header.Get("Baggage") != "" || r.Method != "GET" {
		t.Errorf("trace %s, headers %v", a.TraceID, r.Header)
	}
}

func TestWhatIsNoURLIsWrongUsage(t *testing.T) {
	for _, u := range []string{"", "ftp://a/", "http://", "http://a b/", "://"} {
		if _, err := Send(t.Context(), nil, Request{URL: u}); task.KindOf(err) != task.Usage {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestAHeaderThatIsNoneIsWrongUsage(t *testing.T) {
	for name, value := range map[string]string{"X Odd": "a", "X-Odd\n": "a", "": "a", "X-Odd": "a\nb", "X-Even": "\x01"} {
		_, err := Send(t.Context(), nil, Request{URL: "http://front.shop", Header: http.Header{name: {value}}})
		if task.KindOf(err) != task.Usage || !strings.Contains(err.Error(), "header") {
			t.Errorf("%q: %q: %v", name, value, err)
		}
	}
}

func TestARequestWithoutAnAnswerHasATrace(t *testing.T) {
	got := make(chan string, 1)
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.Header.Get("Traceparent")
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, s.Listener.Addr().String())
	}
	_, err := Send(t.Context(), dial, Request{Method: "POST", URL: "http://front.shop", Body: []byte("x")})
	var sent *Unanswered
	if !errors.As(err, &sent) || !errors.Is(err, io.EOF) || sent.TraceID == "" || !strings.Contains(<-got, sent.TraceID) {
		t.Errorf("%v, %+v", err, sent)
	}
}

func TestAnAnswerIsWaitedForSoLong(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			_, _ = io.WriteString(rw, "data: 1\n\n")
			_ = http.NewResponseController(rw).Flush()
		}
		<-r.Context().Done()
	}))
	defer s.Close()
	var d net.Dialer
	for _, c := range []struct {
		path    string
		timeout time.Duration
		want    string
	}{
		{"/silent", 50 * time.Millisecond, "no answer within 50ms"},
		{"/begun", 5 * time.Second, "the answer (200) has not ended within 5s"},
	} {
		_, err := Send(t.Context(), d.DialContext, Request{URL: s.URL + c.path, Timeout: c.timeout})
		if err == nil || !strings.HasSuffix(err.Error(), c.want) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
}

func TestTheWholeBodyHasADigestAlsoWhereItsBeginningIsKept(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "0123456789") }))
	defer s.Close()
	var d net.Dialer
	for _, most := range []int64{4, 9, 10, 11} {
		a, err := Send(t.Context(), d.DialContext, Request{URL: s.URL, MaxBody: most, Whole: true})
		if err != nil {
			t.Fatal(err)
		}
		if a.Size != 10 || a.Digest != sha256.Sum256([]byte("0123456789")) || a.Truncated != (most < 10) || int64(len(a.Body)) != min(most, 10) {
			t.Errorf("of %d bytes at most: %+v", most, a)
		}
	}
}
