// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 is version v1alpha1 of the API group sidetrack.dev: the types
// that users write and the rules that a written object must keep.
//
// It owns the words of the API: kinds, fields, labels and annotations. It never
// looks at another object, never reads a cluster and never decides where
// traffic goes. Everything in it may be called concurrently.
//
// +kubebuilder:object:generate=true
// +groupName=sidetrack.dev
package v1alpha1

//go:generate go tool controller-gen object crd:maxDescLen=1000 paths=. output:crd:dir=../../deploy/charts/sidetrack-crds/templates
