// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const trace = "4bf92f3577b34da6a3ce929d0e0e4736"

func TestWhatIsAskedForIsWhatIsRead(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 600, time.UTC)
	for _, o := range []Options{
		{Limit: DefaultLimit},
		{Since: now.Add(-time.Hour), Trace: trace, Limit: 7, Follow: true},
	} {
		got, err := ParseOptions(o.Values(), now)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(o, got); diff != "" {
			t.Errorf("options (-want +got):\n%s", diff)
		}
	}
	got, err := ParseOptions(url.Values{"since": {"10m"}}, now)
	if err != nil || !got.Since.Equal(now.Add(-10*time.Minute)) {
		t.Errorf("since=10m: %v, %v", got.Since, err)
	}
}

func TestABadParameterIsNamedWithWhatItShouldBe(t *testing.T) {
	for query, want := range map[string]string{
		"since=yesterday":                  `since: "yesterday" is neither a time such as`,
		"since=-5m":                        "since:",
		"trace=xyz":                        "trace: \"xyz\" is not a trace id: use 32 of 0-9 a-f",
		"trace=" + strings.Repeat("0", 32): "not all zero",
		"trace=" + strings.ToUpper(trace):  "is not a trace id",
		"limit=0":                          "limit: \"0\" is not a number from 1 to 20000",
		"limit=20001":                      "limit:",
		"follow=perhaps":                   "follow: \"perhaps\" is neither true nor false",
		"limit=1&limit=2":                  "limit is there 2 times: give it once",
		"sandbox=a":                        "sandbox is unknown: use since, trace, limit or follow",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseOptions(q, time.Now()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", query, err, want)
		}
	}
}

func TestARequestThatFollowsSaysSoToTheAPIServer(t *testing.T) {
	o := Options{Follow: true, Trace: trace}
	if got, want := o.Path("sandboxes", "shop", "pr-42"),
		"/apis/ledger.sidetrack.dev/v1alpha1/watch/namespaces/shop/sandboxes/pr-42/records?follow=true&trace="+trace; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
	o = Options{}
	if got, want := o.Path("routegroups", "shop", "all"), "/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/routegroups/all/records"; got != want {
		t.Errorf("path %s, want %s", got, want)
	}
}
