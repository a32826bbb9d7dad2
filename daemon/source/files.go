// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"

	"github.com/sidetrack-dev/sidetrack/routing"
)

// digest identifies a document's text.
type digest [sha256.Size]byte

// file is one manifest file: what was last read and what is in force.
type file struct {
	name string
	stat signature

	// read is the state that was read last, good the last one that was in force.
	read, good *content
	// byText has the documents of read that are without errors, so that a change
	// in a large file costs the documents that have changed.
	byText map[digest]*document
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
	c := &content{docs: make([]*document, 0, len(parts))}
	byText := make(map[digest]*document, len(parts))
	for _, p := range parts {
		id := digest(sha256.Sum256(p.text))
		d := f.byText[id]
		if d == nil {
			d = decodeDocument(p.text, p.line)
		}
		if d.refused {
			c.refused = true
		} else {
			byText[id] = d
		}
		c.docs = append(c.docs, d)
	}
	f.read, f.byText, f.unreadable = c, byText, ""
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
	for clash := true; clash; {
		clash = false
		now := maps.Clone(newest)
		seen := map[objectKey]place{}
		for _, f := range sorted {
			c := f.good
			if now[f] {
				c = f.read
			}
			c.each(f, func(o *object, at place) {
				first, taken := seen[o.objectKey]
				if !taken {
					seen[o.objectKey] = at
					return
				}
				clash = true
				loser, other := at, first
				if first.file != at.file && now[first.file] && !first.file.held(o.objectKey) && (!now[at.file] || at.file.held(o.objectKey)) {
					loser, other = first, at
				}
				newest[loser.file] = false
				loser.file.duplicates = append(loser.file.duplicates, Problem{
					File: loser.file.name, Document: loser.doc, Item: loser.item, Refused: true,
					Problem: routing.Problem{
						Kind: o.kind, Object: o.name,
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

// held reports whether the object is in the file's last good state.
func (f *file) held(k objectKey) bool {
	found := false
	f.good.each(f, func(o *object, _ place) { found = found || o.objectKey == k })
	return found
}

// snapshot is everything that is in force, and everything that is wrong.
func snapshot(files map[string]*file) Snapshot {
	var s Snapshot
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		f.good.each(f, func(o *object, _ place) {
			switch {
			case o.service != nil:
				s.Input.Services = append(s.Input.Services, *o.service)
			case o.slice != nil:
				s.Input.Slices = append(s.Input.Slices, *o.slice)
			case o.sandbox != nil:
				s.Input.Sandboxes = append(s.Input.Sandboxes, *o.sandbox)
			case o.pod != nil:
				s.Pods = append(s.Pods, *o.pod)
			}
		})
		s.Problems = append(s.Problems, f.problems()...)
	}
	return s
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
