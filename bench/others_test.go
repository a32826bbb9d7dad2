// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestH2loadIsUnderstood(t *testing.T) {
	const good = `starting benchmark...
finished in 500.13ms, 29930.22 req/s, 8.12MB/s
requests: 15000 total, 15128 started, 15000 done, 15000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 15000 2xx, 0 3xx, 0 4xx, 0 5xx
`
	m, err := readH2load(good, Measured{})
	if err != nil || m.Requests != 15000 || m.Errors != 0 || m.Seconds != 0.50013 {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := readH2load(strings.Replace(good, "0 errored", "3 errored", 1), Measured{}); err != nil || m.Errors != 3 || m.FirstError == "" {
		t.Errorf("%+v, %v, want three errors", m, err)
	}
	if _, err := readH2load(strings.Replace(good, "0 4xx", "1 4xx", 1), Measured{}); !errors.As(err, new(wrongAnswer)) {
		t.Errorf("error %v, want a wrongAnswer", err)
	}
	if _, err := readH2load("h2load: unrecognized option", Measured{}); err == nil {
		t.Error("no error")
	}
}

func TestHTTP2HasTheHeadersOfHTTP1(t *testing.T) {
	for _, tagged := range []bool{false, true} {
		path, all := headers("web.bench", routingKey, tagged)
		if !strings.HasPrefix(path, "/api/") || !slices.Contains(all, ":authority: web.bench") || len(all) < 8 {
			t.Errorf("path %q, headers %q", path, all)
		}
		if got := slices.ContainsFunc(all, func(h string) bool {
			return strings.HasPrefix(h, "baggage: ") && strings.Contains(h, "sidetrack="+routingKey)
		}); got != tagged {
			t.Errorf("tagged %v: carries a key: %v", tagged, got)
		}
	}
}
