// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// digest identifies a document's text. Half of SHA-256 is plenty for that.
type digest [sha256.Size / 2]byte

func digestOf(text []byte) digest {
	sum := sha256.Sum256(text)
	return digest(sum[:])
}

// file is one manifest file: what was last read and what is in force.
type file struct {
	name string
	stat signature
	// emptied is when stat was found outdated by a file of no length.
	emptied time.Time

	// read is the state that was read last, good the last one that was in force.
	read, good *content
	// unreadable is why the file cannot be read at all; empty when it can.
	unreadable string
	// duplicates are the errors that come from other files.
	duplicates []Problem
}

// content is what a file says in one state.
type content struct {
	docs    []*document
	refused bool
}

// parse reads a file's text as its newest state.
func (f *file) parse(text []byte) {
	parts := splitDocuments(text)
	// A change in a large file costs the documents that have changed only.
	known := map[digest]*document{}
	if f.read != nil {
		for _, d := range f.read.docs {
			if !d.refused {
				known[d.text] = d
			}
		}
	}
	c := &content{docs: make([]*document, 0, len(parts))}
	for _, p := range parts {
		id := digestOf(p.text)
		d := known[id]
		if d == nil {
			d = decodeDocument(p.text, p.line)
			d.text = id
		}
		c.refused = c.refused || d.refused
		c.docs = append(c.docs, d)
	}
	f.read, f.unreadable = c, ""
}

// place says where an object is, for messages.
type place struct {
	file      *file
	doc, item int
}

func (p place) String() string {
	return p.file.name + ", " + Problem{Document: p.doc, Item: p.item}.place()
}

// each calls yield with every object of c.
func (c *content) each(f *file, yield func(*object, place)) {
	if c == nil {
		return
	}
	for i, d := range c.docs {
		for j := range d.objects {
			yield(&d.objects[j], place{f, i + 1, d.objects[j].item})
		}
	}
}

// settle decides which files' newest state is in force. A file with an error
// keeps its last good state. One object in two places is an error of the file
// that has come to it last: of the one in whose last good state it is not, else
// of the later by name. Since last good states never collide with one another,
// this ends.
func settle(files map[string]*file) {
	sorted := slices.SortedFunc(maps.Values(files), func(a, b *file) int { return cmp.Compare(a.name, b.name) })
	newest := map[*file]bool{}
	for _, f := range sorted {
		f.duplicates = nil
		newest[f] = f.unreadable == "" && f.read != nil && !f.read.refused
	}
	// Nearly always all names differ, and that can be told without keeping them.
	for clash := mayClash(sorted, newest); clash; {
		clash = false
		now := maps.Clone(newest)
		seen := map[objectKey]place{}
		for _, f := range sorted {
			c := f.good
			if now[f] {
				c = f.read
			}
			c.each(f, func(o *object, at place) {
				key := o.key()
				first, taken := seen[key]
				if !taken {
					seen[key] = at
					return
				}
				clash = true
				loser, other := at, first
				if first.file != at.file && now[first.file] && !first.file.held(key) && (!now[at.file] || at.file.held(key)) {
					loser, other = first, at
				}
				newest[loser.file] = false
				loser.file.duplicates = append(loser.file.duplicates, Problem{
					File: loser.file.name, Document: loser.doc, Item: loser.item, Refused: true,
					Problem: routing.Problem{
						Kind: key.kind, Object: key.name,
						Message: fmt.Sprintf("is in %s as well: remove one of the two", other),
					},
				})
			})
		}
	}
	for _, f := range sorted {
		if newest[f] {
			f.good = f.read
		}
	}
}

// mayClash reports whether some object may be in two places. It goes by hashes, so it
// may be wrong where it says yes.
func mayClash(files []*file, newest map[*file]bool) bool {
	count := 0
	state := func(f *file) *content {
		if newest[f] {
			return f.read
		}
		return f.good
	}
	for _, f := range files {
		if c := state(f); c != nil {
			for _, d := range c.docs {
				count += len(d.objects)
			}
		}
	}
	seed := maphash.MakeSeed()
	seen, twice := make(map[uint64]struct{}, count), false
	for _, f := range files {
		state(f).each(f, func(o *object, _ place) {
			h := maphash.Comparable(seed, o.key())
			_, there := seen[h]
			twice = twice || there
			seen[h] = struct{}{}
		})
	}
	return twice
}

// held reports whether the object is in the file's last good state.
func (f *file) held(k objectKey) bool {
	found := false
	f.good.each(f, func(o *object, _ place) { found = found || o.key() == k })
	return found
}

// snapshot is everything that is in force, and everything that is wrong. The
// files' objects become elements of its slices: they are kept once.
func snapshot(files map[string]*file) Snapshot {
	var s Snapshot
	names := slices.Sorted(maps.Keys(files))
	var services, endpoints, sandboxes, podCount int
	var grants []*grant
	var groups []*group
	for _, name := range names {
		files[name].good.each(files[name], func(o *object, _ place) {
			switch v := o.value.(type) {
			case *routing.Service:
				services++
			case *routing.EndpointSlice:
				endpoints++
			case *routing.Sandbox:
				sandboxes++
			case *pods.Pod:
				podCount++
			case *grant:
				grants = append(grants, v)
			case *group:
				groups = append(groups, v)
			}
		})
	}
	// Exactly as long as they get, since elements are pointed at.
	s.Input.Services = slices.Grow(s.Input.Services, services)
	s.Input.Slices = slices.Grow(s.Input.Slices, endpoints)
	s.Input.Sandboxes = slices.Grow(s.Input.Sandboxes, sandboxes+len(groups))
	s.Pods = slices.Grow(s.Pods, podCount)
	var members []member
	for _, name := range names {
		f := files[name]
		s.Problems = append(s.Problems, f.problems()...)
		f.good.each(f, func(o *object, at place) {
			switch v := o.value.(type) {
			case *routing.Service:
				o.value = move(&s.Input.Services, v)
			case *routing.EndpointSlice:
				o.value = move(&s.Input.Slices, v)
			case *routing.Sandbox:
				kept := move(&s.Input.Sandboxes, v)
				o.value = kept
				members = append(members, member{kept, o.labels})
				for _, p := range permit(kept, grants) {
					s.Problems = append(s.Problems, at.problem(p))
				}
			case *pods.Pod:
				o.value = move(&s.Pods, v)
			}
		})
	}
	for _, name := range names {
		files[name].good.each(files[name], func(o *object, at place) {
			g, ok := o.value.(*group)
			if !ok {
				return
			}
			joined, missing := g.join(members)
			s.Input.Sandboxes = append(s.Input.Sandboxes, joined)
			for _, m := range missing {
				s.Problems = append(s.Problems, at.problem(routing.Problem{
					Kind: v1alpha1.RouteGroupKind, Object: g.Name, Field: "spec.sandboxes",
					Message: fmt.Sprintf("there is no Sandbox %s: create it or correct the name; the group does without it", routing.Name{Namespace: g.Name.Namespace, Name: m}),
				}))
			}
		})
	}
	return s
}

// problem is one that is found at a place.
func (p place) problem(what routing.Problem) Problem {
	return Problem{File: p.file.name, Document: p.doc, Item: p.item, Problem: what}
}

// move appends *v to a slice that has room and returns the new element.
func move[T any](to *[]T, v *T) *T {
	*to = append(*to, *v)
	return &(*to)[len(*to)-1]
}

// problems are those of the newest state, whether it is in force or not.
func (f *file) problems() []Problem {
	var out []Problem
	if f.unreadable != "" {
		out = append(out, Problem{File: f.name, Refused: true, Problem: routing.Problem{Message: f.unreadable}})
	}
	if f.read != nil {
		for i, d := range f.read.docs {
			for _, p := range d.problems {
				p.File, p.Document = f.name, i+1
				out = append(out, p)
			}
		}
	}
	return append(out, f.duplicates...)
}
