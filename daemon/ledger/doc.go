// SPDX-License-Identifier: Apache-2.0

// Package ledger keeps what was routed where on this node, and why, so that nobody
// has to trust a silent green.
//
// It owns the records in memory, their bounds, which traces were seen with a
// routing key, and who is told of a record. It decides nothing about traffic, with
// one exception that a sandbox has to ask for: a request that has lost its key
// goes where its trace's key would have sent it (Open). It never waits for
// whoever reads, never writes to a disk, and holds neither a routing key, nor a
// header, nor a query, nor anything of a body. All methods may be called
// concurrently; those that the request router calls do not wait for anything but
// a short lock. An untagged request of a node on which no tagged one was seen lately
// costs two loads. One to a Service that a sandbox observes, or redirects while it
// observes or propagates, costs reading its traceparent as well, and one of a pod behind
// a Service that matters is kept for some tens of seconds (see Finish), in memory that has a
// bound of its own.
//
// # What is kept
//
// Each Sandbox and each RouteGroup has a ledger of its own. What is in it is
// bounded by bytes, and so is what all of them have together: where there is too
// much, the ledger that has the most loses its oldest record, and counts it.
// A ledger goes with its Sandbox.
package ledger
