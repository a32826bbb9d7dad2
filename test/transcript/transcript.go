// SPDX-License-Identifier: Apache-2.0

// Package transcript keeps what programs under test have written, while tests read it.
//
// It stands alone, since what uses test/lab counts as a test of the kernel and is run on
// others too (see test/kernels), where there is no API server.
package transcript

import (
	"bytes"
	"strings"
	"sync"
)

// Log keeps what programs have written. The zero Log is empty. Several may write to it
// and read it at the same time.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Tail returns up to that many of the last lines.
func (l *Log) Tail(lines int) string {
	all := strings.Split(strings.TrimSpace(l.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
