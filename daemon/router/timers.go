// SPDX-License-Identifier: Apache-2.0

package router

import "time"

// timer is something that a loop does later. It is part of what it is for, so
// that setting it does not allocate.
type timer struct {
	when int64 // nanoseconds of the loop's clock
	at   int   // place in the heap, counted from 1; 0: not set
	fire func()
}

// timers is a heap of timers, the next first. Few are set at any time: nothing
// that goes well needs one.
type timers struct {
	heap  []*timer
	start time.Time
}

func (h *timers) now() int64 { return int64(time.Since(h.start)) }

// set makes t fire in d. A timer that was set is moved.
func (h *timers) set(t *timer, d time.Duration) {
	h.clear(t)
	t.when = h.now() + int64(d)
	h.heap = append(h.heap, t)
	t.at = len(h.heap)
	h.up(t.at - 1)
}

func (h *timers) clear(t *timer) {
	if t.at == 0 {
		return
	}
	i, last := t.at-1, len(h.heap)-1
	h.swap(i, last)
	h.heap[last] = nil
	h.heap = h.heap[:last]
	t.at = 0
	if i < last {
		h.up(i)
		h.down(i)
	}
}

// wait returns in how many milliseconds the next timer fires; -1: none is set.
func (h *timers) wait() int {
	if len(h.heap) == 0 {
		return -1
	}
	d := time.Duration(h.heap[0].when - h.now())
	if d <= 0 {
		return 0
	}
	return int((d + time.Millisecond - 1) / time.Millisecond)
}

// run fires what is due.
func (h *timers) run() {
	if len(h.heap) == 0 {
		return
	}
	now := h.now()
	for len(h.heap) > 0 && h.heap[0].when <= now {
		t := h.heap[0]
		h.clear(t)
		t.fire()
	}
}

func (h *timers) swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.heap[i].at, h.heap[j].at = i+1, j+1
}

func (h *timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.heap[parent].when <= h.heap[i].when {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h *timers) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h.heap); child++ {
			if h.heap[child].when < h.heap[least].when {
				least = child
			}
		}
		if least == i {
			return
		}
		h.swap(i, least)
		i = least
	}
}
