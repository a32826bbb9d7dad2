// SPDX-License-Identifier: Apache-2.0

// Package hops reads the ledger of a sandbox and puts its records in order: which
// call came of which.
//
// It owns the order, which is a guess where records have no trace: it says what it
// goes by. The records themselves are the nodes', read through the API server with
// the user's own permissions. It changes nothing. Everything in it may be called
// concurrently.
package hops
