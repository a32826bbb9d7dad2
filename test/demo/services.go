// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/lab"
)

// hop is one service that a request has come through.
type hop struct {
	Service string
	Version string
}

// runService is a small HTTP service: it asks the next one, if there is one,
// and answers with the hops from itself on. Of tracing it does what every
// OpenTelemetry library does, propagating baggage, and knows nothing else.
func runService(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("service", flag.ContinueOnError)
	var me hop
	f.StringVar(&me.Service, "name", "", "the service's name")
	f.StringVar(&me.Version, "version", "", "its version")
	listen := f.String("listen", "", "comma-separated addresses")
	next := f.String("next", "", "the next service's URL")
	if err := f.Parse(args); err != nil {
		return err
	}
	handler := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		hops := []hop{me}
		if *next != "" {
			onward, err := ask(r.Context(), http.DefaultClient, *next, r.Header.Values("Baggage"))
			if err != nil {
				http.Error(rw, me.Service+": "+err.Error(), http.StatusBadGateway)
				return
			}
			hops = append(hops, onward...)
		}
		rw.Header().Set("Content-Type", "application/json")
		// Who has asked may be gone.
		_ = json.NewEncoder(rw).Encode(hops)
	})
	failed := make(chan error)
	for address := range strings.SplitSeq(*listen, ",") {
		s := &http.Server{Addr: address, Handler: handler}
		defer s.Close()
		go func() { failed <- s.ListenAndServe() }()
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// ask sends one request and returns the hops of the answer.
func ask(ctx context.Context, c *http.Client, url string, baggage []string) ([]hop, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	for _, b := range baggage {
		req.Header.Add("Baggage", b)
	}
	resp, err := c.Do(req)
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
	var hops []hop
	if err := json.Unmarshal(body, &hops); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return hops, nil
}

// runStore is a service with a protocol of its own: it greets, and then says
// everything again.
func runStore(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("store", flag.ContinueOnError)
	version := f.String("version", "", "the store's version")
	listen := f.String("listen", "", "address")
	if err := f.Parse(args); err != nil {
		return err
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if _, err := fmt.Fprintf(c, "store %s\n", *version); err != nil {
				return
			}
			_, _ = io.Copy(c, c)
		}()
	}
}

// greet dials a store and checks that it says everything again.
func greet(c net.Conn) (hop, error) {
	if err := c.SetDeadline(time.Now().Add(lab.Patience(10 * time.Second))); err != nil {
		return hop{}, err
	}
	in := bufio.NewReader(c)
	greeting, err := in.ReadString('\n')
	if err != nil {
		return hop{}, fmt.Errorf("read the greeting: %w", err)
	}
	const said = "not HTTP\x00\x01\n"
	if _, err := io.WriteString(c, said); err != nil {
		return hop{}, fmt.Errorf("talk to the store: %w", err)
	}
	echo, err := in.ReadString('\n')
	if err != nil {
		return hop{}, fmt.Errorf("listen to the store: %w", err)
	}
	if echo != said {
		return hop{}, fmt.Errorf("the store said %q to %q", echo, said)
	}
	service, version, ok := strings.Cut(strings.TrimSpace(greeting), " ")
	if !ok {
		return hop{}, errors.New("the store's greeting names no version: " + greeting)
	}
	return hop{service, version}, nil
}
