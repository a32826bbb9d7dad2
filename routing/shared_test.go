// SPDX-License-Identifier: Apache-2.0

package routing

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// poorHash has many keys collide, in all of their bits.
type poorHash struct{}

func (poorHash) hash(k uint32) uint64 { return uint64(k%7) << 60 }

// TestSharedMapsAreMaps does the same to shared maps and to Go's, and looks at
// every generation again once all of its successors have been made.
func TestSharedMapsAreMaps(t *testing.T) {
	t.Run("counted", func(t *testing.T) { checkShared[countedHash[uint32]](t, 2000) })
	t.Run("seeded", func(t *testing.T) { checkShared[plainHash[uint32]](t, 2000) })
	t.Run("poor", func(t *testing.T) { checkShared[poorHash](t, 200) })
}

func checkShared[H hasher[uint32]](t *testing.T, keys uint32) {
	r := rand.New(rand.NewPCG(1, uint64(keys)))
	type generation struct {
		m    shared[uint32, int, H]
		want map[uint32]int
	}
	all := []generation{{want: map[uint32]int{}}}
	for range 60 {
		last := all[len(all)-1]
		d, want := last.m.change(), maps.Clone(last.want)
		for range r.IntN(int(keys)) {
			key := r.Uint32N(keys)
			if r.IntN(3) == 0 {
				d.delete(key)
				delete(want, key)
			} else {
				v := r.IntN(5)
				d.put(key, v)
				want[key] = v
			}
		}
		all = append(all, generation{d.seal(), want})
	}
	for i, g := range all {
		if g.m.size != len(g.want) {
			t.Fatalf("generation %d has size %d, want %d", i, g.m.size, len(g.want))
		}
		got := map[uint32]int{}
		g.m.all(func(k uint32, v int) bool { got[k] = v; return true })
		if !maps.Equal(got, g.want) {
			t.Fatalf("generation %d has %v, want %v", i, got, g.want)
		}
		for key := range keys {
			v, ok := g.m.get(key)
			if want, there := g.want[key]; v != want || ok != there {
				t.Fatalf("generation %d: key %d: %d, %v; want %d, %v", i, key, v, ok, want, there)
			}
		}
		for _, old := range []generation{{}, all[max(0, i-1)], all[max(0, i-5)], all[len(all)-1]} {
			said := map[uint32]bool{}
			g.m.since(&old.m, func(key uint32, v, was int, had bool) bool {
				if w, h := old.want[key]; v != g.want[key] || was != w || had != h || said[key] {
					t.Fatalf("generation %d: key %d is said to be %d and to have been %d, %v; want %d and %d, %v, once", i, key, v, was, had, g.want[key], w, h)
				}
				said[key] = true
				return true
			})
			for key, v := range g.want {
				if was, had := old.want[key]; (!had || was != v) && !said[key] {
					t.Fatalf("generation %d: key %d differs, and is not said", i, key)
				}
			}
		}
	}
}

// TestSharedMapsShare: or they would be no better than copies.
func TestSharedMapsShare(t *testing.T) {
	var m shared[uint32, int, plainHash[uint32]]
	d := m.change()
	for i := range uint32(10_000) {
		d.put(i, 0)
	}
	m = d.seal()
	d = m.change()
	d.put(77, 1)
	d.delete(78)
	next, said := d.seal(), 0
	next.since(&m, func(uint32, int, int, bool) bool { said++; return true })
	if said > 2*crowd {
		t.Errorf("%d entries are said to differ between maps of which one does", said)
	}
}

func FuzzShared(f *testing.F) {
	f.Add([]byte("some keys and some more"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var m shared[uint32, int, poorHash]
		want := map[uint32]int{}
		for i := 0; i+1 < len(ops); i += 2 {
			d, key := m.change(), uint32(ops[i])
			if ops[i+1]%4 == 0 {
				d.delete(key)
				delete(want, key)
			} else {
				d.put(key, i)
				want[key] = i
			}
			m = d.seal()
		}
		got := map[uint32]int{}
		m.all(func(k uint32, v int) bool { got[k] = v; return true })
		if !maps.Equal(got, want) || m.size != len(want) {
			t.Fatalf("%v, size %d; want %v", got, m.size, want)
		}
	})
}
