// SPDX-License-Identifier: Apache-2.0

// Package source reads Kubernetes objects and turns them into the plain values
// that routing compiles.
//
// It owns where objects come from and what is said about one that is wrong; the
// conversion from objects is the same for every source. It never decides where
// traffic goes, never looks at a network namespace, never writes to a cluster,
// and never puts a routing key into a message. A source may be closed from any
// goroutine; what it sends on its channel is the receiver's, to be read only.
package source

import (
	"fmt"
	"strings"
	"time"

	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// Snapshot is everything that a source knows at one time.
type Snapshot struct {
	// Input lacks the pods: they have no namespace cookies yet.
	Input routing.Input
	// Pods are those that a namespace is to be found for.
	Pods []pods.Pod
	// Problems are in a stable order.
	Problems []Problem
	// Versions say how much of a cluster's changes is in it; zero without one.
	Versions Versions
	// Since is when the oldest change was seen that the Snapshot before this one did
	// not have; zero when nobody knows.
	Since time.Time
	// Same says that nothing but Versions differs from the Snapshot before.
	Same bool
}

// Versions are, for each kind, the resource version up to which all changes are
// known.
type Versions struct {
	Sandboxes, RouteGroups, Services, EndpointSlices string
}

// Problem is something that is wrong with an object or with the file that it is
// in.
type Problem struct {
	// File is the file's name in the directory; empty for the directory itself.
	File string
	// Document counts the documents of the file from 1, Item the items of a List
	// from 1; zero where it is none.
	Document, Item int
	// Problem's Kind and Object are empty where the object could not be told.
	routing.Problem
	// Refused says that the whole file is not in force because of this, but its
	// last good state is; otherwise all but what the message names is in force.
	Refused bool
}

// String formats the problem for a log line:
// "shop.yaml: document 3: Sandbox shop/pr-42: spec.redirects[0].to: set exactly one of service or address".
func (p Problem) String() string {
	var parts []string
	if p.File != "" {
		parts = append(parts, p.File)
	}
	if p.Document > 0 {
		parts = append(parts, p.place())
	}
	if p.Kind != "" {
		parts = append(parts, p.Kind+" "+p.Object.String())
	}
	if p.Field != "" {
		parts = append(parts, p.Field)
	}
	return strings.Join(append(parts, p.Message), ": ")
}

func (p Problem) place() string {
	if p.Item > 0 {
		return fmt.Sprintf("document %d, item %d", p.Document, p.Item)
	}
	return fmt.Sprintf("document %d", p.Document)
}
