// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

func TestRecordsAreReadByHTTP(t *testing.T) {
	l, table := shop(t)
	server := httptest.NewServer(Handler(l, Patience))
	defer server.Close()
	add := func(status int) {
		e, _ := call(t, l, table, tester, "route", "key-of-pr-42", trace1)
		e.Status = status
		l.Finish(e)
	}
	add(200)
	add(201)
	get := func(path string) (*http.Response, string) {
		t.Helper()
		resp, err := http.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	o := ledgerv1alpha1.Options{Limit: 1, Trace: trace1}
	resp, body := get(o.Path("sandboxes", "shop", "pr-42"))
	var list ledgerv1alpha1.RecordList
	if err := json.Unmarshal([]byte(body), &list); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", resp.Status, err)
	}
	if list.Kind != "RecordList" || len(list.Items) != 1 || list.Items[0].Status != 201 || list.Nodes[0].Omitted != 1 {
		t.Errorf("the list is %s", body)
	}
	if strings.Contains(body, "key-of-pr-42") {
		t.Errorf("the list shows the key: %s", body)
	}
	for path, want := range map[string]string{
		"/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/sandboxes/pr-42":                     "404 there is nothing at this path",
		"/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/pods/pr-42/records":                  "404",
		"/apis/ledger.sidetrack.dev/v1alpha1/namespaces//sandboxes/pr-42/records":                 "404",
		"/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/sandboxes/pr-42/records?limit=x":     `400 limit: "x" is not a number`,
		"/apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/sandboxes/pr-42/records?follow=true": "400 follow: a request that lasts has /watch",
	} {
		resp, body := get(path)
		var s struct{ Kind, Message string }
		if err := json.Unmarshal([]byte(body), &s); path[7] == 'e' && err != nil {
			t.Errorf("%s: %q: %v", path, body, err)
		}
		if got := resp.Status[:3] + " " + s.Message; !strings.HasPrefix(got, want) && !strings.HasPrefix(strings.TrimSpace(got), want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	resp, err := http.Post(server.URL+o.Path("sandboxes", "shop", "pr-42"), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
}

func TestAStreamGoesOnWithWhatComes(t *testing.T) {
	l, table := shop(t)
	server := httptest.NewServer(Handler(l, Patience))
	defer server.Close()
	o := ledgerv1alpha1.Options{Follow: true}
	resp, err := http.Get(server.URL + o.Path("sandboxes", "shop", "pr-42"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() (list ledgerv1alpha1.RecordList) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the stream has ended: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	if first := next(); len(first.Items) != 0 || len(first.Nodes) != 1 || !first.Nodes[0].Answered {
		t.Errorf("it begins with %+v", first)
	}
	for i := range 3 {
		e, _ := call(t, l, table, tester, "route", "key-of-pr-42", "")
		e.Status = i
		l.Finish(e)
		if got := next(); len(got.Items) != 1 || int(got.Items[0].Status) != i {
			t.Errorf("record %d comes as %+v", i, got)
		}
	}
}

// streamer is a Reader of streams alone.
type streamer func(ctx context.Context, send func(*ledgerv1alpha1.RecordList) error) error

func (streamer) Records(context.Context, Owner, ledgerv1alpha1.Options) (*ledgerv1alpha1.RecordList, error) {
	return nil, TooMuch{Reason: "there are streams only"}
}

func (f streamer) Follow(ctx context.Context, _ Owner, _ ledgerv1alpha1.Options, begin func() error, send func(*ledgerv1alpha1.RecordList) error) error {
	if err := begin(); err != nil {
		return err
	}
	return f(ctx, send)
}

func TestAStreamThatTheLedgerEndsSaysWhy(t *testing.T) {
	for _, tc := range []struct {
		err    error
		reason metav1.StatusReason
		code   int32
		again  int32
	}{
		{TooMuch{Reason: "others want to read", Again: 1500 * time.Millisecond}, metav1.StatusReasonTooManyRequests, 429, 2},
		{Forbidden("you may not read it any more"), metav1.StatusReasonForbidden, 403, 0},
		{errors.New("the API server is away"), metav1.StatusReasonServiceUnavailable, 503, 0},
		{fmt.Errorf("the server ends: %w", context.Canceled), "", 0, 0},
	} {
		server := httptest.NewServer(Handler(streamer(func(context.Context, func(*ledgerv1alpha1.RecordList) error) error { return tc.err }), Patience))
		o := ledgerv1alpha1.Options{Follow: true}
		resp, err := http.Get(server.URL + o.Path("sandboxes", "shop", "pr-42"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		server.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v: %s, %v", tc.err, resp.Status, err)
		}
		if tc.code == 0 {
			if len(body) > 0 {
				t.Errorf("%v: it says %q", tc.err, body)
			}
			continue
		}
		var list ledgerv1alpha1.RecordList
		if err := json.Unmarshal(body, &list); err != nil || list.Ended == nil {
			t.Errorf("%v: it says %q (%v)", tc.err, body, err)
			continue
		}
		e := list.Ended
		again := int32(0)
		if e.Details != nil {
			again = e.Details.RetryAfterSeconds
		}
		if list.Kind != "RecordList" || list.Items == nil || e.Reason != tc.reason || e.Code != tc.code || again != tc.again || e.Message != tc.err.Error() {
			t.Errorf("%v: it says %q", tc.err, body)
		}
	}
}

// A client is given up when it takes nothing of what there is, and not when there is
// nothing.
func TestAnIdleStreamOutlivesThePatienceAndAStalledReaderDoesNot(t *testing.T) {
	const patience = 3 * time.Second
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			t.Parallel()
			stalled := make(chan error, 1)
			part := ledgerv1alpha1.RecordList{Items: []ledgerv1alpha1.Record{{Target: strings.Repeat("x", 100<<10)}}}
			server := httptest.NewUnstartedServer(Handler(streamer(func(ctx context.Context, send func(*ledgerv1alpha1.RecordList) error) error {
				err := send(&ledgerv1alpha1.RecordList{Items: []ledgerv1alpha1.Record{{Status: 1}}})
				for i := range 2 {
					select {
					case <-time.After(2 * patience):
					case <-ctx.Done():
					}
					if err == nil {
						err = send(&ledgerv1alpha1.RecordList{Items: []ledgerv1alpha1.Record{{Status: int32(2 + i)}}})
					}
				}
				for err == nil {
					err = send(&part)
				}
				stalled <- err
				return err
			}), patience))
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			o := ledgerv1alpha1.Options{Follow: true}
			resp, err := server.Client().Get(server.URL + o.Path("sandboxes", "shop", "pr-42"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if (resp.ProtoMajor == 2) != http2 {
				t.Fatalf("it is served by %s", resp.Proto)
			}
			lines := bufio.NewReader(resp.Body)
			for i := range 3 {
				line, err := lines.ReadBytes('\n')
				if err != nil {
					t.Fatalf("the stream has ended after %d lines: %v", i, err)
				}
				var list ledgerv1alpha1.RecordList
				if err := json.Unmarshal(line, &list); err != nil || len(list.Items) != 1 || list.Items[0].Status != int32(i+1) {
					t.Errorf("line %d: %q, %v", i, line, err)
				}
			}
			// And now it reads no more.
			select {
			case <-stalled:
			case <-time.After(2 * time.Minute):
				t.Error("who takes nothing of what there is, is not given up")
			}
		})
	}
}

// lister is a Reader of one list.
type lister func(ctx context.Context) *ledgerv1alpha1.RecordList

func (f lister) Records(ctx context.Context, _ Owner, _ ledgerv1alpha1.Options) (*ledgerv1alpha1.RecordList, error) {
	return f(ctx), nil
}

func (lister) Follow(context.Context, Owner, ledgerv1alpha1.Options, func() error, func(*ledgerv1alpha1.RecordList) error) error {
	return TooMuch{Reason: "there are lists only"}
}

// Each of its chunks is taken well within the patience.
func TestAReaderThatTricklesIsGivenUp(t *testing.T) {
	const size, patience = 32 << 20, 3 * time.Second
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			t.Parallel()
			part := ledgerv1alpha1.Record{Target: strings.Repeat("x", 64<<10)}
			over := make(chan struct{})
			server := httptest.NewUnstartedServer(handler(lister(func(ctx context.Context) *ledgerv1alpha1.RecordList {
				context.AfterFunc(ctx, func() { close(over) })
				return &ledgerv1alpha1.RecordList{Items: slices.Repeat([]ledgerv1alpha1.Record{part}, size>>16)}
			}), patience, size/2))
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			resp, err := server.Client().Get(server.URL + (&ledgerv1alpha1.Options{}).Path("sandboxes", "shop", "pr-42"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			n, given := 0, false
			for buffer := make([]byte, 64<<10); ; {
				m, err := io.ReadFull(resp.Body, buffer)
				n += m
				if err != nil {
					break
				}
				if !given {
					select {
					case <-over: // what is on its way comes at once
						given = true
					case <-time.After(100 * time.Millisecond):
					}
				}
			}
			if n >= size {
				t.Errorf("it gets all of %d bytes", n)
			}
		})
	}
}
