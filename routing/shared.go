// SPDX-License-Identifier: Apache-2.0

package routing

import "hash/maphash"

// shared is a map of which a changed copy shares what has not changed with the map
// that it was copied from: a generation of a million routes costs the next one no
// more than what differs. It is a tree by the bits of the keys' hashes (Bagwell,
// "Ideal Hash Trees", 2001), with a few entries in each leaf.
//
// A shared map is a value. It is never changed once the draft that made it has been
// sealed, so any number of goroutines may read it. The zero one is empty.
type shared[K comparable, V any, H hasher[K]] struct {
	root *branch[K, V]
	size int
}

// hasher says how keys are hashed; it has no state.
type hasher[K any] interface{ hash(K) uint64 }

const (
	fanBits = 4
	fan     = 1 << fanBits
	// crowd is how many entries a leaf has at most, but for those that cannot be
	// told apart by their hashes.
	crowd = 16
	// growth is how much room a full leaf gets: there are many, and most stay as
	// they are.
	growth = 3
)

// branch is an inner node when it has kids, else a leaf.
type branch[K comparable, V any] struct {
	owner   *draftMark // whoever may change it in place
	kids    *[fan]*branch[K, V]
	entries []pair[K, V]
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

// draftMark is the identity of a draft. It is not of size zero, since two of those
// may have one address.
type draftMark struct{ _ byte }

// leaf returns the entries that a key of this hash is among, if it is there.
func (m *shared[K, V, H]) leaf(h uint64) []pair[K, V] {
	n := m.root
	for n != nil && n.kids != nil {
		n = n.kids[h%fan]
		h >>= fanBits
	}
	if n == nil {
		return nil
	}
	return n.entries
}

// get returns the value of a key.
func (m *shared[K, V, H]) get(key K) (v V, ok bool) {
	var hs H
	entries := m.leaf(hs.hash(key))
	for i := range entries {
		if entries[i].key == key {
			return entries[i].value, true
		}
	}
	return v, false
}

// of returns the value of a key, or the zero value.
func (m *shared[K, V, H]) of(key K) V {
	v, _ := m.get(key)
	return v
}

// all calls yield with every entry, in no order, until it returns false.
func (m *shared[K, V, H]) all(yield func(K, V) bool) { m.root.all(yield) }

func (n *branch[K, V]) all(yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	if n.kids != nil {
		for _, kid := range n.kids {
			if !kid.all(yield) {
				return false
			}
		}
		return true
	}
	for i := range n.entries {
		if !yield(n.entries[i].key, n.entries[i].value) {
			return false
		}
	}
	return true
}

// since calls yield with every entry of m that old lacks or has another node for,
// and what old has instead: all that differ are among them, and few others. Called
// both ways round, it finds what has changed between any two generations in a time
// that depends on that alone.
func (m *shared[K, V, H]) since(old *shared[K, V, H], yield func(key K, v V, was V, had bool) bool) bool {
	return m.root.since(old.root, func(key K, v V) bool {
		was, had := old.get(key)
		return yield(key, v, was, had)
	})
}

func (n *branch[K, V]) since(old *branch[K, V], yield func(K, V) bool) bool {
	if n == old {
		return true
	}
	if n == nil || old == nil || n.kids == nil || old.kids == nil {
		return n.all(yield)
	}
	for i, kid := range n.kids {
		if !kid.since(old.kids[i], yield) {
			return false
		}
	}
	return true
}

// draft is a shared map while it is being changed, by one goroutine.
type draft[K comparable, V any, H hasher[K]] struct {
	shared[K, V, H]
	mark *draftMark
}

// change begins a copy of m.
func (m shared[K, V, H]) change() draft[K, V, H] {
	return draft[K, V, H]{m, &draftMark{}}
}

// seal ends the changes.
func (d *draft[K, V, H]) seal() shared[K, V, H] {
	d.mark = &draftMark{}
	return d.shared
}

// put sets a key's value.
func (d *draft[K, V, H]) put(key K, v V) {
	var hs H
	d.root = d.putIn(d.root, hs.hash(key), 0, key, v)
}

func (d *draft[K, V, H]) putIn(n *branch[K, V], h uint64, depth int, key K, v V) *branch[K, V] {
	if n == nil {
		d.size++
		return &branch[K, V]{owner: d.mark, entries: []pair[K, V]{{key, v}}}
	}
	n = d.own(n)
	if n.kids != nil {
		at := &n.kids[h>>(depth*fanBits)%fan]
		*at = d.putIn(*at, h, depth+1, key, v)
		return n
	}
	for i := range n.entries {
		if n.entries[i].key == key {
			n.entries[i].value = v
			return n
		}
	}
	d.size++
	if len(n.entries) == cap(n.entries) {
		n.entries = append(make([]pair[K, V], 0, len(n.entries)+growth), n.entries...)
	}
	n.entries = append(n.entries, pair[K, V]{key, v})
	if len(n.entries) > crowd && depth*fanBits < 64 {
		d.split(n, depth)
	}
	return n
}

// split makes an inner node of a leaf.
func (d *draft[K, V, H]) split(n *branch[K, V], depth int) {
	var hs H
	n.kids = new([fan]*branch[K, V])
	for _, e := range n.entries {
		at := &n.kids[hs.hash(e.key)>>(depth*fanBits)%fan]
		if *at == nil {
			*at = &branch[K, V]{owner: d.mark}
		}
		if (*at).entries == nil {
			(*at).entries = make([]pair[K, V], 0, growth)
		}
		(*at).entries = append((*at).entries, e)
	}
	n.entries = nil
}

// own returns n, or a copy of it, that may be changed.
func (d *draft[K, V, H]) own(n *branch[K, V]) *branch[K, V] {
	if n.owner == d.mark {
		return n
	}
	c := &branch[K, V]{owner: d.mark}
	if n.kids != nil {
		kids := *n.kids
		c.kids = &kids
	} else {
		c.entries = append(make([]pair[K, V], 0, len(n.entries)+1), n.entries...)
	}
	return c
}

// delete takes a key away, if it is there.
func (d *draft[K, V, H]) delete(key K) {
	var hs H
	if _, ok := d.get(key); ok {
		d.root = d.deleteIn(d.root, hs.hash(key), key)
		d.size--
	}
}

func (d *draft[K, V, H]) deleteIn(n *branch[K, V], h uint64, key K) *branch[K, V] {
	n = d.own(n)
	if n.kids == nil {
		for i := range n.entries {
			if n.entries[i].key == key {
				last := len(n.entries) - 1
				n.entries[i] = n.entries[last]
				n.entries[last] = pair[K, V]{}
				n.entries = n.entries[:last]
				break
			}
		}
		if len(n.entries) == 0 {
			return nil
		}
		return n
	}
	at := &n.kids[h%fan]
	*at = d.deleteIn(*at, h>>fanBits, key)
	for _, kid := range n.kids {
		if kid != nil {
			return n
		}
	}
	return nil
}

// seed keeps whoever chooses names and keys from choosing where they end up.
var seed = maphash.MakeSeed()

type stringHash struct{}

func (stringHash) hash(s string) uint64 { return maphash.String(seed, s) }

// plainHash is for keys without pointers but those of strings: maphash has others
// moved to the heap.
type plainHash[K comparable] struct{}

func (plainHash[K]) hash(k K) uint64 { return maphash.Comparable(seed, k) }

// countedHash is for ids that are counted up: they need no secret, and neighbours
// are spread anyway.
type countedHash[K ~uint32] struct{}

func (countedHash[K]) hash(k K) uint64 { return uint64(k) }
