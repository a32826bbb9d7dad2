// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"
)

func clusterIP(s string) netip.Addr { return netip.MustParseAddr(s) }

// scene is one thing that is sent, and the way that it should take.
type scene struct {
	title string
	from  string
	send  func() ([]hop, error)
	want  []hop
}

var (
	frontend  = hop{"frontend", baseline}
	middle    = hop{"middle", baseline}
	last      = hop{"last", baseline}
	lastFork  = hop{"last", fork}
	store     = hop{"store", baseline}
	storeFork = hop{"store", fork}
)

// show sends everything, draws the way that each has taken, and returns an
// error when one was not the way that it should have taken.
func (s *stage) show(ctx context.Context, out io.Writer) error {
	client := s.pods["client"].Client()
	var connections atomic.Int32
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		connections.Add(1)
		return s.pods["client"].DialContext(ctx, network, address)
	}
	request := func(baggage ...string) func() ([]hop, error) {
		return func() ([]hop, error) { return ask(ctx, client, frontendURL, baggage) }
	}
	flow := func(pod string) func() ([]hop, error) {
		return func() ([]hop, error) {
			c, err := s.pods[pod].DialContext(ctx, "tcp", storeAddress)
			if err != nil {
				return nil, err
			}
			defer c.Close()
			h, err := greet(c)
			return []hop{h}, err
		}
	}
	tag := "sidetrack=" + key
	scenes := []scene{
		{
			"An HTTP request without a key", "client",
			request(), []hop{frontend, middle, last},
		}, {
			"The same with a key, on the same connection: baggage: " + tag, "client",
			request(tag), []hop{frontend, middle, lastFork},
		}, {
			"And without one again, on the same connection", "client",
			request("userId=alice"), []hop{frontend, middle, last},
		}, {
			"Raw TCP from a pod that everybody shares", "client",
			flow("client"), []hop{store},
		}, {
			"Raw TCP from a pod of the sandbox", "runner",
			flow("runner"), []hop{storeFork},
		},
	}
	var wrong []error
	for i, sc := range scenes {
		fmt.Fprintf(out, "%d. %s\n", i+1, sc.title)
		got, err := sc.send()
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		switch {
		case err != nil:
			fmt.Fprintf(out, "   FAILED: %v\n\n", err)
			wrong = append(wrong, fmt.Errorf("%s: %w", sc.title, err))
		case !slices.Equal(got, sc.want):
			fmt.Fprintf(out, "%s   WRONG: want %v\n\n", draw(sc.from, got), sc.want)
			wrong = append(wrong, fmt.Errorf("%s: went %v, want %v", sc.title, got, sc.want))
		default:
			fmt.Fprintf(out, "%s\n", draw(sc.from, got))
		}
	}
	if n := connections.Load(); n != 1 {
		wrong = append(wrong, fmt.Errorf("the client's requests took %d connections, want 1", n))
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not all went well: %w\n%s", errors.Join(wrong...), s.log.String())
	}
	fmt.Fprintf(out, "All %d went where they should.\n", len(scenes))
	return nil
}

// draw draws a way through services. A fork is drawn below the baseline that it
// stands in for.
func draw(from string, hops []hop) string {
	const arrow = " ──> "
	upper, lower := "   "+from, ""
	for _, h := range hops {
		if h.Version == baseline {
			upper += arrow + h.Service
			continue
		}
		upper += " ─┐"
		lower = strings.Repeat(" ", utf8.RuneCountInString(upper)-1) + "└> " + h.Service + " of " + h.Version
		upper += "   " + h.Service
	}
	if lower == "" {
		return upper + "\n"
	}
	return upper + "\n" + lower + "\n"
}
