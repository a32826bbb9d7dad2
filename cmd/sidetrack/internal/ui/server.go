// SPDX-License-Identifier: Apache-2.0

package ui

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// cookieName is what the cookie is called that lets a browser in.
const cookieName = "sidetrack-ui"

// entrance is the path, in the random folder, that gives the cookie.
const entrance = "enter"

// policy holds for the page beside the one that the cluster serves it with, whatever
// that is: the page's scripts and styles are files, and it talks to this server only.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// noPage is the policy of what is no file of the page: it is not shown as one.
const noPage = "default-src 'none'; frame-ancestors 'none'; sandbox"

// Server passes on what the page reads.
type Server struct {
	listener net.Listener
	host     string // as browsers name it
	secret   string // the folder in front of all paths
	cookie   string
	where    string // what the page shows first
	proxy    *httputil.ReverseProxy

	mu sync.Mutex
	// links are the tokens that let a browser in, and whether for one time only.
	links map[string]bool
}

// New makes a server for one user of a cluster, on a listener on a loopback
// address, which it takes over. where is what the page is to show first, as it
// writes it in its address: "/NAMESPACE/sandboxes/NAME", "/NAMESPACE" or "".
func New(cfg *rest.Config, l net.Listener, where string) (*Server, error) {
	address, ok := l.Addr().(*net.TCPAddr)
	if !ok || !address.IP.IsLoopback() {
		return nil, fmt.Errorf("%v is no loopback address: whoever reached it could read what you can", l.Addr())
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	transport, err := rest.TransportFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("talk to the API server: %w", err)
	}
	s := &Server{listener: l, host: l.Addr().String(), secret: rand.Text(), cookie: rand.Text(), where: where, links: map[string]bool{}}
	s.proxy = &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { s.rewrite(r, base) },
		Transport:      transport,
		FlushInterval:  -1, // A ledger that is followed comes line by line.
		ModifyResponse: modify,
		ErrorHandler:   unreachable,
		ErrorLog:       log.New(io.Discard, "", 0), // The page shows what is wrong.
	}
	return s, nil
}

// Link returns an address that lets a browser in, for as long as the server runs.
// With once it does so a single time: such a one may be seen by others, as a
// program's arguments can be, after it was used.
func (s *Server) Link(once bool) string {
	token := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[token] = once
	return "http://" + s.host + "/" + s.secret + "/" + entrance + "?token=" + token
}

// Run serves until the context ends. It may be called once.
func (s *Server) Run(ctx context.Context) error {
	server := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	// A ledger that is followed has no end of its own.
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the page on %s: %w", s.host, err)
	}
	return nil
}

// ServeHTTP answers a browser.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", noPage)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	if r.Host != s.host {
		refuse(w, http.StatusMisdirectedRequest, "this is http://"+s.host+": open the address that sidetrack ui has printed, without another name for it")
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "the page only reads: use GET")
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/"+s.secret+"/")
	if !ok {
		refuse(w, http.StatusNotFound, "nothing is here: open the address that sidetrack ui has printed")
		return
	}
	// Whoever comes from elsewhere may come in, but read nothing on the way.
	if path == entrance && r.Header.Get("Origin") == "" {
		s.enter(w, r)
		return
	}
	if o := r.Header.Get("Origin"); o != "" && o != "http://"+s.host {
		refuse(w, http.StatusForbidden, "the page is for itself only, not for "+o)
		return
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		refuse(w, http.StatusForbidden, "the page is for itself only, not for pages of other places")
		return
	}
	cookie, err := r.Cookie(cookieName)
	if err != nil || subtle.ConstantTimeCompare([]byte(cookie.Value), []byte(s.cookie)) != 1 {
		refuse(w, http.StatusUnauthorized, "open the address that sidetrack ui has printed")
		return
	}
	a := allowed(r.URL, "/"+path)
	if a == nil {
		refuse(w, http.StatusForbidden, "the page does not need this, so sidetrack ui does not pass it on: use kubectl")
		return
	}
	// The proxy adds to these, and modify and unreachable say what they are to be.
	h.Del("Content-Security-Policy")
	h.Del("Cache-Control")
	s.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), allowanceKey{}, a)))
}

// allowanceKey is what a request's allowance is kept by in its context.
type allowanceKey struct{}

// enter gives the cookie to a browser that has a token. It answers with a page that
// leads on by itself: a browser that another place has sent here would not send the
// cookie along when it is redirected.
func (s *Server) enter(w http.ResponseWriter, r *http.Request) {
	if !s.takes(r.URL.Query().Get("token")) {
		refuse(w, http.StatusForbidden, "this address is wrong, or was for one time: open the one that sidetrack ui has printed")
		return
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Value: s.cookie, Path: "/" + s.secret + "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	// No sandbox: it would take the cookie from where it leads to.
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	to := html.EscapeString("/" + s.secret + Index + "#" + s.where)
	fmt.Fprintf(w, "<!doctype html><html lang=\"en\"><title>Sidetrack</title><meta http-equiv=\"refresh\" content=\"0;url=%s\"><a href=\"%s\">Sidetrack</a></html>\n", to, to)
}

func (s *Server) takes(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for known, once := range s.links {
		if subtle.ConstantTimeCompare([]byte(known), []byte(token)) == 1 {
			if once {
				delete(s.links, known)
			}
			return true
		}
	}
	return false
}

// rewrite makes a request to the API server of one that is allowed.
func (s *Server) rewrite(r *httputil.ProxyRequest, base *url.URL) {
	a := r.In.Context().Value(allowanceKey{}).(*allowance)
	to := *base
	to.Path = strings.TrimSuffix(base.Path, "/") + strings.TrimPrefix(r.In.URL.Path, "/"+s.secret)
	to.RawPath, to.RawQuery = "", r.In.URL.RawQuery
	r.Out.URL = &to
	r.Out.Host = base.Host
	r.Out.Header = a.request(r.In.Header)
	r.Out.Body, r.Out.ContentLength = http.NoBody, 0
}

// modify keeps of an answer what the page needs, and has files shown as files and
// objects not at all.
func modify(answer *http.Response) error {
	a := answer.Request.Context().Value(allowanceKey{}).(*allowance)
	if answer.StatusCode < 200 || answer.StatusCode >= 300 && answer.StatusCode < 400 && answer.StatusCode != http.StatusNotModified {
		return fmt.Errorf("it answers %s, which it should not", answer.Status)
	}
	h := http.Header{}
	for _, name := range kept {
		if v := answer.Header.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	h.Set("Content-Security-Policy", noPage)
	h.Set("Cache-Control", "no-store")
	mediaType, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	switch {
	case a.file && (answer.StatusCode == http.StatusNotModified || answer.StatusCode == http.StatusOK && slices.Contains(mediaTypes, mediaType)):
		// Of two policies both hold.
		h.Set("Content-Security-Policy", policy)
		if own := answer.Header.Get("Content-Security-Policy"); own != "" {
			h.Add("Content-Security-Policy", own)
		}
		h.Set("Cache-Control", "no-cache")
	case mediaType != "application/json":
		h.Set("Content-Type", "text/plain; charset=utf-8")
	}
	answer.Header = h
	return nil
}

// refuse says why not, in words for whoever looks at it.
func refuse(w http.ResponseWriter, code int, why string) {
	http.Error(w, "sidetrack ui: "+why, code)
}

// unreachable tells the page why there is no answer, as the API server tells it
// what is wrong.
func unreachable(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // The browser does not listen any more.
	}
	body, marshalErr := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure, Code: http.StatusBadGateway,
		Message: "sidetrack ui cannot read the API server: " + err.Error(),
	})
	if marshalErr != nil {
		refuse(w, http.StatusBadGateway, marshalErr.Error())
		return
	}
	h := w.Header()
	h.Set("Content-Security-Policy", noPage)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadGateway)
	w.Write(body) //nolint:errcheck // There is nobody else to tell.
}
