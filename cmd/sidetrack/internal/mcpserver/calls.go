// SPDX-License-Identifier: Apache-2.0

package mcpserver

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// lastCalls is how long calls that were ended may take to remove what they have made
// in the cluster.
const lastCalls = 25 * time.Second

var errEnding = errors.New("the server is ending")

// calls are those under way. They end when the server does, which waits for them: the
// library waits for calls, and does not end them.
type calls struct {
	mu     sync.Mutex
	next   int
	open   map[int]context.CancelFunc
	ending bool
	over   chan struct{} // closed when it is ending and none is open
}

func newCalls() *calls { return &calls{open: map[int]context.CancelFunc{}, over: make(chan struct{})} }

// count is the middleware that knows them.
func (c *calls) count(next mcp.MethodHandler) mcp.MethodHandler {
	return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
		if _, ok := req.(*mcp.CallToolRequest); !ok {
			return next(ctx, method, req)
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		c.mu.Lock()
		if c.ending {
			c.mu.Unlock()
			return nil, errEnding
		}
		id := c.next
		c.next++
		c.open[id] = cancel
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.open, id)
			if c.ending && len(c.open) == 0 {
				close(c.over)
			}
		}()
		return next(ctx, method, req)
	}
}

// end ends all, and lets no other begin.
func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return
	}
	c.ending = true
	if len(c.open) == 0 {
		close(c.over)
	}
	for _, cancel := range c.open {
		cancel()
	}
}

// wait ends all and waits for them, not for ever.
func (c *calls) wait() {
	c.end()
	select {
	case <-c.over:
	case <-time.After(lastCalls):
	}
}
