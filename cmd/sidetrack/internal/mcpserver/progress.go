// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// beat is how often a client hears of a call that has nothing new to tell. Many give
// up a call that they have heard nothing of for a minute, and wait on where they have.
const beat = 15 * time.Second

// progress tells a client how far a call is, if it wants to know.
type progress struct {
	tell  func(n float64, message string)
	begun time.Time

	mu   sync.Mutex
	n    float64
	last string
}

// progressOf returns what a call's progress is told to, and what ends it: nothing may be
// told of a call that has its result.
func progressOf(ctx context.Context, req *mcp.CallToolRequest, every time.Duration) (task.Progress, func()) {
	token := req.Params.GetProgressToken()
	if token == nil {
		return task.Silent, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &progress{begun: time.Now(), last: "under way", tell: func(n float64, message string) {
		// A client that is gone cancels the call.
		_ = req.Session.NotifyProgress(ctx, &mcp.ProgressNotificationParams{ProgressToken: token, Progress: n, Message: message})
	}}
	over := make(chan struct{})
	go func() {
		defer close(over)
		p.repeat(ctx, every)
	}()
	return p, func() {
		cancel()
		<-over
	}
}

// Report tells what is new.
func (p *progress) Report(e task.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = e.Subject + ": " + e.State
	p.say(p.last)
}

// repeat tells that it goes on, until the context ends.
func (p *progress) repeat(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.mu.Lock()
		if ctx.Err() == nil {
			p.say(fmt.Sprintf("%s (%s so far)", p.last, time.Since(p.begun).Round(time.Second)))
		}
		p.mu.Unlock()
	}
}

func (p *progress) say(message string) {
	p.n++
	p.tell(p.n, message)
}
