// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waiter waits for a loop's events. How it does that is most of the latency that
// a router adds to a lonely request, because waking a thread costs more than all
// the work on a request. In the order of what is tried:
//
//  1. It asks again and again for a short while, if that has paid lately: when a
//     request has just gone to a fast server, its answer is there before a thread
//     has gone to sleep and been woken.
//  2. It waits for a few milliseconds without telling Go's scheduler. Told of a
//     blocked thread, the scheduler wakes others to use the time: two to four
//     context switches for each request that comes alone. It can do without being
//     told: to stop this goroutine it sends the thread a signal, which ends
//     epoll_wait with EINTR, and the next function call obeys.
//  3. Then nothing much is going on, and it waits as everybody does.
//
// What each step brings has been measured: docs/decisions/0006-how-a-loop-waits.md.
type waiter struct {
	// score counts short waits for and long waits against spinning.
	score int
}

const (
	spinFor   = 40 * time.Microsecond
	shortWait = 2 * spinFor // with going to sleep and being woken
	holdFor   = 2           // milliseconds of the second step

	spinScore = 8
	maxScore  = 16
)

// wait is epoll_wait with a timeout in milliseconds; negative: none.
func (w *waiter) wait(epoll int, events []unix.EpollEvent, timeout int) int {
	if timeout == 0 {
		return poll(epoll, events, 0)
	}
	start := time.Now()
	if w.score >= spinScore {
		for time.Since(start) < spinFor {
			if n := poll(epoll, events, 0); n > 0 {
				w.score = min(w.score+1, maxScore)
				return n
			}
		}
		// It takes several short waits to make up for one spin in vain: the server
		// that is to answer may want this very core.
		w.score = 0
	}
	n := block(epoll, events, timeout)
	if n > 0 && time.Since(start) < shortWait {
		w.score = min(w.score+1, maxScore)
	} else {
		w.score = max(w.score-1, 0)
	}
	return n
}

func block(epoll int, events []unix.EpollEvent, timeout int) int {
	if timeout > 0 && timeout <= holdFor {
		return poll(epoll, events, timeout)
	}
	if n := poll(epoll, events, holdFor); n > 0 {
		return n
	}
	if timeout > 0 {
		timeout -= holdFor
	}
	n, err := unix.EpollWait(epoll, events, timeout)
	if err != nil && err != unix.EINTR {
		panic(fmt.Sprintf("router: epoll_wait: %v", err))
	}
	return max(n, 0)
}

// poll is epoll_wait without a word to Go's scheduler.
func poll(epoll int, events []unix.EpollEvent, timeout int) int {
	n, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	if e != noError && e != unix.EINTR {
		panic(fmt.Sprintf("router: epoll_wait: %v", e))
	}
	if e != noError {
		return 0
	}
	return int(n)
}
