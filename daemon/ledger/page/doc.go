// SPDX-License-Identifier: Apache-2.0

// Package page serves the page that shows sandboxes and their ledgers to people:
// which requests went where, and which hop lost the key.
//
// It owns the page's files, which are in the binary, and the headers that they are
// served with. It never reads a cluster: the files are the same for everybody and
// hold nothing of anybody; what the page shows it gets from the Kubernetes API, in
// the browser, with the rights of whoever looks. Handler may be called
// concurrently, and so may what it returns.
//
// # Paths
//
// All files are in one folder, since the API server takes the path for that of an
// object: below /apis/ledger.sidetrack.dev/v1alpha1/ui/ it asks whether somebody
// may get the object "app.js" of the resource "ui", and there is no rule for
// whatever else might come below. It also forbids caches, whatever a handler says,
// so files have an ETag and no hash in their names.
//
// # What is not ours
//
// The files preact.mjs and dagre.mjs are those of the npm packages that package.json
// names, byte for byte; package-lock.json has their hashes, vendor.sh fetches them.
package page

//go:generate ./vendor.sh
