// SPDX-License-Identifier: Apache-2.0

package ui

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger/page"
	"github.com/sidetrack-dev/sidetrack/test/browser"
)

// upstream stands for an API server behind a path, and remembers what it was asked.
type upstream struct {
	*httptest.Server
	mu    sync.Mutex
	asked []*http.Request
}

const prefix = "/k8s/clusters/c-1"

func newUpstream(t *testing.T, answer http.HandlerFunc) *upstream {
	u := &upstream{}
	files := http.StripPrefix(prefix, page.Handler())
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.asked = append(u.asked, r)
		u.mu.Unlock()
		if strings.HasPrefix(r.URL.Path, prefix+folder) {
			files.ServeHTTP(w, r)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(func() {
		u.CloseClientConnections()
		u.Server.Close()
	})
	return u
}

func (u *upstream) requests() []*http.Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.asked
}

// empty answers with a list that has nothing in it.
func empty(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Set-Cookie", "upstream=1")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Audit-Id", "1")
	fmt.Fprintln(w, `{"items":[]}`)
}

// serve runs a server for an upstream until the test is over.
func serve(t *testing.T, u *upstream, where string) *Server {
	t.Helper()
	return serveAt(t, u.URL+prefix, where)
}

func serveAt(t *testing.T, host, where string) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(&rest.Config{Host: host, BearerToken: "token-of-the-user"}, l, where)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ends with %v", err)
		}
	})
	return s
}

// visitor returns a client that has the cookie.
func visitor(t *testing.T, s *Server) *http.Client {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Jar: jar}
	answer, err := c.Get(s.Link(false))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("entering: %s", answer.Status)
	}
	return c
}

const sandboxes = "/apis/sidetrack.dev/v1alpha1/namespaces/shop/sandboxes"

func (s *Server) address(path string) string { return "http://" + s.host + "/" + s.secret + path }

func do(t *testing.T, c *http.Client, method, address string, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func TestARequestOfThePageReachesTheAPIServerAsItsUser(t *testing.T) {
	u := newUpstream(t, empty)
	s := serve(t, u, "/shop")
	c := visitor(t, s)
	answer, body := do(t, c, "GET", s.address(sandboxes), func(r *http.Request) {
		r.Header.Set("Authorization", "Bearer somebody-elses")
		r.Header.Set("Impersonate-User", "system:admin")
		r.Header.Set("X-Forwarded-For", "10.0.0.1")
		r.Header.Set("Accept", "text/html")
	})
	if answer.StatusCode != http.StatusOK || strings.TrimSpace(body) != `{"items":[]}` {
		t.Fatalf("%s: %s", answer.Status, body)
	}
	got := u.requests()[0]
	if got.URL.Path != prefix+sandboxes || got.Header.Get("Authorization") != "Bearer token-of-the-user" || got.Header.Get("Accept") != "application/json" {
		t.Errorf("the API server was asked for %s with %v", got.URL, got.Header)
	}
	for _, name := range []string{"Impersonate-User", "Cookie", "X-Forwarded-For", "Referer", "Origin"} {
		if got.Header.Get(name) != "" {
			t.Errorf("the browser's %s has reached the API server", name)
		}
	}
	for _, name := range []string{"Set-Cookie", "Access-Control-Allow-Origin", "Audit-Id"} {
		if answer.Header.Get(name) != "" {
			t.Errorf("the API server's %s has reached the browser", name)
		}
	}
	if p := answer.Header.Values("Content-Security-Policy"); len(p) != 1 || p[0] != noPage || answer.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("data come with the policy %q and may be kept %q", p, answer.Header.Get("Cache-Control"))
	}
}

func TestAnAPIServerMayBeBehindAPathOrNone(t *testing.T) {
	for host, want := range map[string]string{"": sandboxes, "/": sandboxes, prefix: prefix + sandboxes, prefix + "/": prefix + sandboxes} {
		u := newUpstream(t, empty)
		s := serveAt(t, u.URL+host, "")
		answer, body := do(t, visitor(t, s), "GET", s.address(sandboxes), nil)
		if all := u.requests(); answer.StatusCode != http.StatusOK || len(all) != 1 || all[0].URL.Path != want {
			t.Errorf("behind %q: %s: %s; it was asked %v", host, answer.Status, body, all)
		}
	}
}

func TestOfPodsOnlyATableOfTheSandboxesIsAskedFor(t *testing.T) {
	u := newUpstream(t, empty)
	s := serve(t, u, "/shop")
	c := visitor(t, s)
	do(t, c, "GET", s.address("/api/v1/namespaces/shop/pods?labelSelector=sidetrack.dev%2Fsandbox%3Dpr-42"), func(r *http.Request) { r.Header.Set("Accept", "application/json") })
	if all := u.requests(); len(all) != 1 || all[0].Header.Get("Accept") != table {
		t.Errorf("asked %d times, %v", len(all), all)
	}
}

func TestNothingElseIsPassedOn(t *testing.T) {
	u := newUpstream(t, empty)
	s := serve(t, u, "/shop")
	c := visitor(t, s)
	for _, path := range []string{
		"/api/v1/namespaces/shop/secrets",
		"/api/v1/namespaces/shop/pods",
		"/api/v1/namespaces/shop/pods?labelSelector=app",
		"/api/v1/namespaces/shop/pods?labelSelector=sidetrack.dev/sandbox=a&labelSelector=b",
		"/api/v1/namespaces/shop/pods/p/log",
		"/api/v1/namespaces/shop/pods/p/exec?command=sh",
		sandboxes + "?watch=true",
		sandboxes + "/pr-42/status",
		sandboxes + "/..%2f..%2f..%2fsecrets",
		"/apis/sidetrack.dev/v1alpha1/namespaces/shop%2fsandboxes",
		"/apis/ledger.sidetrack.dev/v1alpha1/ui/../namespaces",
		"/apis/ledger.sidetrack.dev/v1alpha1/ui/",
		"/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/sandboxes/a/records?follow=true&evil=1",
		"/version", "/", "/metrics", "//api/v1/nodes",
	} {
		if answer, body := do(t, c, "GET", s.address(path), nil); answer.StatusCode != http.StatusForbidden || !strings.Contains(body, "use kubectl") {
			t.Errorf("%s: %s: %s", path, answer.Status, body)
		}
	}
	if n := len(u.requests()); n != 0 {
		t.Errorf("%d requests have reached the API server", n)
	}
}

func TestOthersAreNotLetIn(t *testing.T) {
	u := newUpstream(t, empty)
	s := serve(t, u, "/shop")
	in, stranger := visitor(t, s), &http.Client{}
	for what, try := range map[string]struct {
		client  *http.Client
		method  string
		address string
		change  func(*http.Request)
		want    int
	}{
		"without the cookie":         {stranger, "GET", s.address(sandboxes), nil, http.StatusUnauthorized},
		"with another cookie":        {stranger, "GET", s.address(sandboxes), func(r *http.Request) { r.AddCookie(&http.Cookie{Name: cookieName, Value: "x"}) }, http.StatusUnauthorized},
		"without the folder":         {in, "GET", "http://" + s.host + sandboxes, nil, http.StatusNotFound},
		"in another folder":          {in, "GET", "http://" + s.host + "/x" + sandboxes, nil, http.StatusNotFound},
		"a name that leads here":     {in, "GET", s.address(sandboxes), func(r *http.Request) { r.Host = "evil.example" }, http.StatusMisdirectedRequest},
		"localhost for its address":  {in, "GET", s.address(sandboxes), func(r *http.Request) { r.Host = strings.Replace(s.host, "127.0.0.1", "localhost", 1) }, http.StatusMisdirectedRequest},
		"another origin":             {in, "GET", s.address(sandboxes), func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, http.StatusForbidden},
		"no origin in particular":    {in, "GET", s.address(sandboxes), func(r *http.Request) { r.Header.Set("Origin", "null") }, http.StatusForbidden},
		"another port of this host":  {in, "GET", s.address(sandboxes), func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") }, http.StatusForbidden},
		"another place":              {in, "GET", s.address(sandboxes), func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }, http.StatusForbidden},
		"writing":                    {in, "POST", s.address(sandboxes), nil, http.StatusMethodNotAllowed},
		"deleting":                   {in, "DELETE", s.address(sandboxes + "/pr-42"), nil, http.StatusMethodNotAllowed},
		"asking what is allowed":     {in, "OPTIONS", s.address(sandboxes), nil, http.StatusMethodNotAllowed},
		"a token that was made up":   {stranger, "GET", s.address("/" + entrance + "?token=x"), nil, http.StatusForbidden},
		"no token":                   {stranger, "GET", s.address("/" + entrance), nil, http.StatusForbidden},
		"a script with the token":    {stranger, "GET", s.Link(false), func(r *http.Request) { r.Header.Set("Origin", "http://evil.example") }, http.StatusForbidden},
		"the entrance of a stranger": {stranger, "GET", strings.Replace(s.Link(false), s.secret, "x", 1), nil, http.StatusNotFound},
	} {
		answer, body := do(t, try.client, try.method, try.address, try.change)
		if answer.StatusCode != try.want {
			t.Errorf("%s: %s, want %d: %s", what, answer.Status, try.want, body)
		}
		if len(answer.Header.Values("Access-Control-Allow-Origin")) > 0 || len(answer.Cookies()) > 0 || answer.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: answered with %v", what, answer.Header)
		}
	}
	if n := len(u.requests()); n != 0 {
		t.Errorf("%d requests have reached the API server", n)
	}
}

func TestTheCookieIsForTheFolderAndForNoScript(t *testing.T) {
	s := serve(t, newUpstream(t, empty), "/shop/sandboxes/pr-42")
	answer, body := do(t, &http.Client{}, "GET", s.Link(false), nil)
	cookies := answer.Cookies()
	if len(cookies) != 1 || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteStrictMode || cookies[0].Path != "/"+s.secret+"/" {
		t.Errorf("cookies %v", cookies)
	}
	if want := "/" + s.secret + Index + "#/shop/sandboxes/pr-42"; !strings.Contains(body, want) {
		t.Errorf("it leads elsewhere than to %s:\n%s", want, body)
	}
}

func TestALinkForOneTimeIsForOneTime(t *testing.T) {
	s := serve(t, newUpstream(t, empty), "/shop")
	once, often := s.Link(true), s.Link(false)
	for i, want := range []int{http.StatusOK, http.StatusForbidden} {
		if answer, _ := do(t, &http.Client{}, "GET", once, nil); answer.StatusCode != want {
			t.Errorf("use %d of it: %s", i+1, answer.Status)
		}
		if answer, _ := do(t, &http.Client{}, "GET", often, nil); answer.StatusCode != http.StatusOK {
			t.Errorf("use %d of the other: %s", i+1, answer.Status)
		}
	}
}

func TestNothingButLoopbackIsServed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := New(&rest.Config{Host: "http://127.0.0.1:1"}, everywhere{l}, ""); err == nil || !strings.Contains(err.Error(), "is no loopback address") {
		t.Errorf("error %v", err)
	}
}

// everywhere is a listener that says that it is open to the network.
type everywhere struct{ net.Listener }

func (everywhere) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4zero, Port: 80} }

func TestALedgerThatIsFollowedComesLineByLine(t *testing.T) {
	next := make(chan string)
	u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for {
			select {
			case line := <-next:
				fmt.Fprintln(w, line)
				http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	s := serve(t, u, "/shop")
	c := visitor(t, s)
	go func() { next <- "one" }()
	answer, err := c.Get(s.address("/apis/ledger.sidetrack.dev/v1alpha1/watch/namespaces/shop/sandboxes/pr-42/records?follow=true&limit=10"))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for _, want := range []string{"one", "two"} {
		if want != "one" {
			next <- want
		}
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("%q, %v: want %q", lines.Text(), lines.Err(), want)
		}
	}
}

func TestAnAnswerThatIsNoObjectIsNotShownAsAPage(t *testing.T) {
	for _, what := range []struct {
		code        int
		contentType string
		want        int
	}{{200, "text/html", 200}, {200, "image/svg+xml", 200}, {302, "application/json", 502}, {101, "application/json", 502}} {
		u := newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", what.contentType)
			w.Header().Set("Location", "http://evil.example/")
			w.WriteHeader(what.code)
		})
		s := serve(t, u, "/shop")
		answer, body := do(t, visitor(t, s), "GET", s.address(sandboxes), nil)
		if answer.StatusCode != what.want || strings.Contains(answer.Header.Get("Content-Type"), "html") || strings.Contains(answer.Header.Get("Content-Type"), "svg") ||
			answer.Header.Get("Location") != "" || answer.Header.Get("Content-Security-Policy") != noPage {
			t.Errorf("%d %s: %s, %v, %s", what.code, what.contentType, answer.Status, answer.Header, body)
		}
	}
}

func TestAnAPIServerThatIsNotThereIsSaidInItsOwnForm(t *testing.T) {
	u := newUpstream(t, empty)
	s := serve(t, u, "/shop")
	c := visitor(t, s)
	u.Server.Close()
	answer, body := do(t, c, "GET", s.address(sandboxes), nil)
	if answer.StatusCode != http.StatusBadGateway || !strings.Contains(body, `"message":"sidetrack ui cannot read the API server: `) {
		t.Errorf("%s: %s", answer.Status, body)
	}
}

// TestABrowserShowsThePage goes the whole way: the address that is printed, the
// cookie, the page's files under both policies, and its data.
func TestABrowserShowsThePage(t *testing.T) {
	u := newUpstream(t, empty)
	s := serve(t, u, "/shop/sandboxes/pr-42")
	p := browser.Open(t)
	p.MustGo(s.Link(true))
	p.MustWait("document.body.innerText.includes('pr-42 is not there')")
	p.MustBe("document.body.innerText.includes('No sandboxes in shop yet')")
	p.MustBe("location.hash === '#/shop/sandboxes/pr-42' && document.cookie === ''")
	if c := p.Complaints(); len(c) > 0 {
		t.Errorf("the page complains: %q", c)
	}
	for _, address := range p.Asked() {
		if a, err := url.Parse(address); err != nil || a.Host != s.host {
			t.Errorf("the page has asked for %s", address)
		}
	}
	// Without the cookie, the address of the page is of no use.
	other := browser.Open(t)
	other.MustGo(s.address(Index))
	other.MustWait("document.body.innerText.includes('open the address that sidetrack ui has printed')")
}
