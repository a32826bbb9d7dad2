// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io"
	"sync/atomic"
	"syscall"
)

// readBy is standard output. When nobody reads it any more, as after head(1) has seen
// enough, the program ends, cleaning up.
type readBy struct {
	io.Writer
	gone atomic.Bool
	end  func()
}

func (r *readBy) Write(b []byte) (int, error) {
	n, err := r.Writer.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		r.gone.Store(true)
		r.end()
	}
	return n, err
}
