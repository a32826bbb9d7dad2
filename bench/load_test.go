// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestEveryWayOfLoadingCountsAnswers(t *testing.T) {
	srv := httptest.NewServer(answering(baseline))
	defer srv.Close()
	for _, way := range []string{keptAlive, paced, connecting} {
		t.Run(way, func(t *testing.T) {
			l := testLoad(way, srv)
			all, err := l.run()
			if err != nil {
				t.Fatal(err)
			}
			m := all[0]
			if m.Requests == 0 || m.Errors != 0 {
				t.Errorf("%d requests, %d errors (%s); want many and none", m.Requests, m.Errors, m.FirstError)
			}
			if m.Own <= 0 {
				t.Errorf("the generator has used %v of CPU", m.Own)
			}
			if way == paced && (m.Median <= 0 || m.P99 < m.Median) {
				t.Errorf("median %v, 99th percentile %v", m.Median, m.P99)
			}
		})
	}
}

func TestEveryWayOfLoadingReportsTheWrongServer(t *testing.T) {
	srv := httptest.NewServer(answering(fork))
	defer srv.Close()
	for _, way := range []string{keptAlive, paced, connecting} {
		t.Run(way, func(t *testing.T) {
			l := testLoad(way, srv)
			if _, err := l.run(); !errors.As(err, new(wrongAnswer)) {
				t.Errorf("error %v, want a wrongAnswer", err)
			}
		})
	}
}

func TestConnectionsThatEndEarlyAreCounted(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	l := testLoad(keptAlive, srv)
	all, err := l.run()
	// A fast machine comes to the limit, a slow one to the end of its time.
	if limit := err != nil && strings.Contains(err.Error(), "connections have failed"); !limit && (err != nil || all[0].Errors == 0) {
		t.Errorf("%+v, error %v; want failed connections, or an error that counts them", all, err)
	}
}

func testLoad(way string, srv *httptest.Server) Load {
	return Load{
		Way: way, Host: "web.bench", Key: routingKey, Connections: 4, Rate: 500,
		Paths:  []Path{{Target: netip.MustParseAddrPort(srv.Listener.Addr().String()), Want: baseline}},
		Warmup: 20 * time.Millisecond, For: 100 * time.Millisecond,
	}
}
