// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// sizes is how long messages are; 0: some length.
var sizes int

// loaded is what load says.
type loaded struct {
	Calls, Streams int64 // done, and how many of them were streams
	Misrouted      int64
	Failed         int64
	Answered       map[string]int64 // by whom
	First          string           // what was wrong first
	Errors         map[string]int64 // how often what was wrong
	Seconds        float64
}

// load makes calls with keys at random on each of a few connections.
func load(args []string) error {
	f := flag.NewFlagSet("load", flag.ContinueOnError)
	address := f.String("address", "", "host:port of the server")
	keys := f.String("keys", "", "what to tag calls with, and who answers then: key=name, separated by commas; an empty key is untagged")
	connections := f.Int("connections", 8, "how many")
	calls := f.Int64("calls", 1000, "how many, on all connections together")
	duration := f.Duration("for", 0, "call for so long instead of a number of times")
	unary := f.Bool("unary", false, "make no streams")
	f.IntVar(&sizes, "size", 0, "bytes of each message; 0: some, at random")
	f.BoolVar(&inBaggage, "baggage", false, "tag calls by a baggage member instead of "+keyHeader)
	each := f.Int("parallel", 16, "calls of a connection at a time")
	if err := f.Parse(args); err != nil {
		return err
	}
	type target struct{ key, name string }
	var targets []target
	for _, pair := range strings.Split(*keys, ",") {
		key, name, ok := strings.Cut(pair, "=")
		if !ok {
			return fmt.Errorf("-keys: %q is no key=name", pair)
		}
		targets = append(targets, target{key, name})
	}
	end := time.Now().Add(*duration)
	more := func(left *atomic.Int64) bool {
		if *duration > 0 {
			return time.Now().Before(end)
		}
		return left.Add(-1) >= 0
	}
	began := time.Now()
	var left, done, streams, misrouted, failed atomic.Int64
	left.Store(*calls)
	answered := make([]atomic.Int64, len(targets))
	var mu sync.Mutex
	out := loaded{Answered: map[string]int64{}, Errors: map[string]int64{}}
	var wg sync.WaitGroup
	for range *connections {
		conn, err := dial(*address)
		if err != nil {
			return err
		}
		defer conn.Close()
		for range *each {
			wg.Go(func() {
				for more(&left) {
					n := rand.IntN(len(targets))
					c := &client{conn: conn, want: targets[n].name, key: targets[n].key}
					var err error
					if !*unary && rand.IntN(4) == 0 {
						streams.Add(1)
						if err = c.exchange(); err != nil && !errors.As(err, new(misroute)) {
							err = fmt.Errorf("stream: %w", err)
						}
					} else {
						err = c.echo()
					}
					done.Add(1)
					switch {
					case err == nil:
						answered[n].Add(1)
						continue
					case errors.As(err, new(misroute)):
						misrouted.Add(1)
					default:
						failed.Add(1)
					}
					mu.Lock()
					if out.First == "" {
						out.First = err.Error()
					}
					out.Errors[err.Error()]++
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	out.Seconds = time.Since(began).Seconds()
	out.Calls, out.Streams, out.Misrouted, out.Failed = done.Load(), streams.Load(), misrouted.Load(), failed.Load()
	for i := range answered {
		out.Answered[targets[i].name] += answered[i].Load()
	}
	say(out)
	if out.Failed+out.Misrouted > 0 {
		return errors.New("some calls went wrong")
	}
	return nil
}

// misroute is an answer of the wrong server, or to another call.
type misroute struct{ reason string }

func (m misroute) Error() string { return m.reason }

func (c *client) echo() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	size := sizes
	if size == 0 {
		size = rand.IntN(2000)
	}
	request := fmt.Appendf(nil, "%d %s", rand.Uint64(), strings.Repeat(".", size))
	var answer []byte
	if err := c.conn.Invoke(ctx, "/calls/Echo", &request, &answer); err != nil {
		return err
	}
	return c.same(answer, request)
}

func (c *client) same(answer, request []byte) error {
	got, err := c.checked(answer)
	if err != nil {
		return misroute{err.Error()}
	}
	if !bytes.Equal(got, request) {
		return misroute{"the answer is another call's"}
	}
	return nil
}

// exchange is a stream of a few messages, each way.
func (c *client) exchange() error {
	ctx, cancel := c.context(patience)
	defer cancel()
	s, err := c.stream(ctx, "Chat")
	if err != nil {
		return err
	}
	for range 1 + rand.IntN(4) {
		request := fmt.Appendf(nil, "%d %s", rand.Uint64(), strings.Repeat(".", rand.IntN(4000)))
		if err := s.send(request); err != nil {
			return err
		}
		var answer []byte
		if err := s.RecvMsg(&answer); err != nil {
			return err
		}
		if err := c.same(answer, request); err != nil {
			return err
		}
		if rand.IntN(10) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.end()
}
