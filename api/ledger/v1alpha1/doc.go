// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is version v1alpha1 of the API group ledger.sidetrack.dev: what
// is read of where tagged traffic went, and why.
//
// It owns the words of the ledger and how a client asks for it. Nothing of it is
// kept by the API server: records live in the memory of the nodes that made them.
// It never reads a cluster and decides nothing. Everything in it may be called
// concurrently.
//
// # Asking
//
// A Sandbox's records are below the Sandbox's name, in a group of their own:
//
//	GET /apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/sandboxes/pr-42/records
//	GET /apis/ledger.sidetrack.dev/v1alpha1/namespaces/shop/routegroups/all/records
//
// The answer is a RecordList; Options are the parameters of the query. With
// follow it is a stream of RecordLists, each on a line of its own, and does not
// end; Options.Path says where such a request goes.
//
// +kubebuilder:object:generate=true
// +groupName=ledger.sidetrack.dev
package v1alpha1

//go:generate go tool controller-gen object paths=.
