// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/images/visit"
)

// serve answers with the visits from itself on. Its version is $VERSION, which
// the image sets.
func serve(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("serve", flag.ContinueOnError)
	name := f.String("name", "", "the service's name")
	listen := f.String("listen", ":8080", "the `address` to serve on")
	next := f.String("next", "", "the next service's `URL`")
	database := f.String("database", "", "the `address` of a PostgreSQL server to ask who it is")
	if err := f.Parse(args); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the pod's name: %w", err)
	}
	here := visit.Visit{Service: *name, Version: os.Getenv("VERSION"), Pod: host, Sandbox: os.Getenv("SIDETRACK_SANDBOX")}
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		me := here
		me.Client = r.RemoteAddr
		me.Baggage = strings.Join(r.Header.Values("Baggage"), ",")
		visits := []visit.Visit{me}
		if *database != "" {
			database, err := askDatabase(r.Context(), *database)
			if err != nil {
				http.Error(rw, *name+": "+err.Error(), http.StatusBadGateway)
				return
			}
			visits[0].Database = database
		}
		if *next != "" {
			onward, err := ask(r.Context(), *next, propagated(*name, r.Header))
			if err != nil {
				http.Error(rw, *name+": "+err.Error(), http.StatusBadGateway)
				return
			}
			visits = append(visits, onward...)
		}
		rw.Header().Set("Content-Type", "application/json")
		// Who has asked may be gone.
		_ = json.NewEncoder(rw).Encode(visits)
	})
	return listenAndServe(ctx, *listen, handler)
}

// propagated are the headers that a service passes on: what belongs to the trace.
// One that X-Lose names forgets the baggage, as services do that were written before
// there was any.
func propagated(name string, in http.Header) http.Header {
	out := http.Header{}
	for _, h := range []string{"Baggage", "Traceparent", "X-Lose"} {
		if values := in.Values(h); len(values) > 0 {
			out[h] = values
		}
	}
	if in.Get("X-Lose") == name {
		out.Del("Baggage")
	}
	return out
}

func listenAndServe(ctx context.Context, address string, handler http.Handler) error {
	s := &http.Server{Addr: address, Handler: handler}
	failed := make(chan error)
	go func() { failed <- s.ListenAndServe() }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", address, err)
	case <-ctx.Done():
	}
	// As a good service does: it goes on while clients learn that it is leaving.
	time.Sleep(500 * time.Millisecond)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("stop serving: %w", err)
	}
	return nil
}

// ask sends one request over a kept-alive connection.
func ask(ctx context.Context, url string, header http.Header) ([]visit.Visit, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return visit.Parse(body)
}

// askDatabase asks a PostgreSQL server for its cluster_name over a connection of
// its own. It speaks as much of the protocol as that takes.
func askDatabase(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return "", fmt.Errorf("reach the database: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	name, err := clusterName(conn)
	if err != nil {
		return "", fmt.Errorf("talk to the database: %w", err)
	}
	return name, nil
}
