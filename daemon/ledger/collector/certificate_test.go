// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// apiService is an API server that has the APIService and nothing else.
type apiService struct {
	mu     sync.Mutex
	bundle []byte
	away   bool
}

func (a *apiService) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *apiService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var object struct {
		Spec struct {
			CABundle []byte `json:"caBundle"`
		} `json:"spec"`
	}
	switch {
	case r.URL.Path != "/apis/apiregistration.k8s.io/v1/apiservices/"+APIService:
		http.NotFound(w, r)
		return
	case a.away:
		http.Error(w, "away", http.StatusForbidden)
		return
	case r.Method == http.MethodPatch:
		if err := json.NewDecoder(r.Body).Decode(&object); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a.bundle = object.Spec.CABundle
	}
	object.Spec.CABundle = a.bundle
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(&object)
}

func TestACertificateIsServedOnceTheAPIServerKnowsIt(t *testing.T) {
	var a apiService
	s := httptest.NewServer(&a)
	defer s.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	const name, life = "sidetrack-ledger.sidetrack.svc", 80 * time.Minute
	reset := func() { a.bundle = []byte("somebody else's") }
	type step struct {
		minute int
		before func() // what happens before
		away   bool
		served int // which certificate is, after it
	}
	for title, steps := range map[string][]step{
		"as it should be": {
			{minute: 1, served: 0}, {minute: 39, served: 0}, {minute: 41, served: 0}, {minute: 42, served: 1}, {minute: 43, served: 1},
			{minute: 81, served: 1}, {minute: 82, served: 1}, {minute: 83, served: 2},
		},
		"somebody takes it out": {
			{minute: 41, served: 0}, {minute: 42, before: reset, served: 0}, {minute: 43, served: 1}, {minute: 44, before: reset, served: 1},
		},
		"again and again, until the one before ends": {
			{minute: 41, served: 0}, {minute: 42, before: reset, served: 0}, {minute: 59, before: reset, served: 0}, {minute: 61, before: reset, served: 1},
		},
		"the API server is away": {
			{minute: 41, served: 0, away: true}, {minute: 42, served: 0}, {minute: 43, served: 1},
		},
		"it is away, and somebody takes it out": {
			{minute: 41, served: 0}, {minute: 42, before: reset, away: true, served: 0}, {minute: 61, away: true, served: 0}, {minute: 62, served: 1},
		},
	} {
		t.Run(title, func(t *testing.T) {
			p, err := newPublisher(name, life, client.CoreV1().RESTClient(), slog.New(slog.NewTextHandler(io.Discard, nil)))
			if err != nil {
				t.Fatal(err)
			}
			began := p.now.Load().made
			served, last := 0, p.now.Load()
			for _, x := range steps {
				now := began.Add(time.Duration(x.minute) * time.Minute)
				a.set(func() {
					if x.before != nil {
						x.before()
					}
					a.away = x.away
				})
				if err := p.publish(t.Context(), now); (err != nil) != x.away {
					t.Errorf("minute %d: %v", x.minute, err)
				}
				id := p.now.Load()
				if id != last {
					served, last = served+1, id
				}
				if served != x.served {
					t.Errorf("minute %d: certificate %d is served, want %d", x.minute, served, x.served)
				}
				if x.away {
					continue
				}
				cert, err := x509.ParseCertificate(id.cert.Certificate[0])
				if err != nil {
					t.Fatal(err)
				}
				roots := x509.NewCertPool()
				a.set(func() { roots.AppendCertsFromPEM(a.bundle) })
				if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}); err != nil {
					t.Errorf("minute %d: the API server cannot verify it: %v", x.minute, err)
				}
			}
		})
	}
}
