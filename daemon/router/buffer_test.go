// SPDX-License-Identifier: Apache-2.0

package router

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestABufferGivesBackWhatWasAdded(t *testing.T) {
	var p pool
	var b buffer
	random := rand.New(rand.NewPCG(3, 3))
	var want []byte
	for i := range 20_000 {
		if random.IntN(2) == 0 || len(want) == 0 {
			data := bytes.Repeat([]byte{byte(i)}, random.IntN(3000))
			b.add(&p, data)
			want = append(want, data...)
		} else {
			n := random.IntN(len(want) + 1)
			b.skip(&p, n)
			want = want[n:]
		}
		if !bytes.Equal(b.bytes(), want) || b.len() != len(want) {
			t.Fatalf("step %d: %d bytes, want %d", i, b.len(), len(want))
		}
		if len(want) == 0 && b.b != nil {
			t.Fatalf("step %d: an empty buffer keeps memory", i)
		}
	}
}

func TestAPoolKeepsALimitedAmount(t *testing.T) {
	var p pool
	for range 10_000 {
		p.put(make([]byte, 0, 64<<10))
		p.put(make([]byte, 0, 2<<10))
		p.put(make([]byte, 0, 3000)) // not of its making
		p.put(make([]byte, 0, 1<<20))
	}
	total := 0
	for _, class := range p.free {
		for _, b := range class {
			total += cap(b)
		}
	}
	if total != 2*keepBytes {
		t.Errorf("the pool keeps %d bytes, want %d", total, 2*keepBytes)
	}
}

func TestTimersFireInOrder(t *testing.T) {
	h := timers{start: time.Now().Add(-time.Hour)}
	random := rand.New(rand.NewPCG(4, 4))
	all := make([]timer, 500)
	var fired []int64
	for i := range all {
		tm := &all[i]
		tm.fire = func() { fired = append(fired, tm.when) }
		h.set(tm, -time.Duration(random.IntN(1_000_000)))
	}
	for i := range all {
		switch random.IntN(3) {
		case 0:
			h.clear(&all[i])
		case 1:
			h.set(&all[i], -time.Duration(random.IntN(1_000_000)))
		}
	}
	left := len(h.heap)
	if h.wait() != 0 {
		t.Errorf("timers are due, and the wait is %d", h.wait())
	}
	h.run()
	if len(fired) != left || !slices.IsSorted(fired) || h.wait() != -1 {
		t.Errorf("%d of %d fired, sorted %t", len(fired), left, slices.IsSorted(fired))
	}
	h.set(&all[0], time.Hour)
	if w := h.wait(); w < 3_000_000 || w > 3_600_000 {
		t.Errorf("the wait for an hour is %d ms", w)
	}
}
