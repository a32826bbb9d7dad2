// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/images/visit"
)

// runner does what the test asks of it: POST /ask is one request, POST /load
// begins load in the place of what there was, and GET /load tells what has become of it.
func runner(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("runner", flag.ContinueOnError)
	listen := f.String("listen", ":9000", "the `address` to take orders on")
	if err := f.Parse(args); err != nil {
		return err
	}
	var mu sync.Mutex
	var current *load
	var stop context.CancelFunc
	defer func() {
		if stop != nil {
			stop()
		}
	}()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /ask", func(rw http.ResponseWriter, r *http.Request) {
		var what visit.Request
		if decode(rw, r, &what) {
			encode(rw, askOnce(r.Context(), what))
		}
	})
	mux.HandleFunc("POST /load", func(rw http.ResponseWriter, r *http.Request) {
		var what visit.Load
		if !decode(rw, r, &what) {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if stop != nil {
			stop()
		}
		current = newLoad(what)
		var loading context.Context
		loading, stop = context.WithCancel(ctx)
		go current.run(loading)
		encode(rw, current.result())
	})
	mux.HandleFunc("GET /load", func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if current == nil {
			http.Error(rw, "there was no load", http.StatusNotFound)
			return
		}
		encode(rw, current.result())
	})
	return listenAndServe(ctx, *listen, mux)
}

func decode(rw http.ResponseWriter, r *http.Request, into any) bool {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func encode(rw http.ResponseWriter, what any) {
	rw.Header().Set("Content-Type", "application/json")
	// Who has asked may be gone.
	_ = json.NewEncoder(rw).Encode(what)
}

func askOnce(ctx context.Context, what visit.Request) visit.Response {
	if what.Timeout == 0 {
		what.Timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, what.Timeout)
	defer cancel()
	if what.Database != "" {
		name, err := askDatabase(ctx, what.Database)
		if err != nil {
			return visit.Response{Failure: err.Error()}
		}
		return visit.Response{Status: http.StatusOK, Body: name}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, what.URL, http.NoBody)
	if err != nil {
		return visit.Response{Failure: err.Error()}
	}
	for name, value := range what.Header {
		req.Header.Set(name, value)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return visit.Response{Failure: err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return visit.Response{Failure: err.Error()}
	}
	return visit.Response{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
}
