// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
)

// FieldManager is who users of this program are to server-side apply.
const FieldManager = "sidetrack"

// Cluster is one cluster, as one user sees it.
type Cluster struct {
	// Config is how the API server is reached.
	Config *rest.Config
	// Objects reads and writes objects of Kubernetes' own kinds and of ours.
	Objects client.WithWatch
	// Core is for what is more than an object, such as logs.
	Core kubernetes.Interface
	// Namespace is where objects are unless somebody says otherwise.
	Namespace string
}

// Scheme returns one that knows Kubernetes' own kinds and ours.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("learn the kinds of objects: %w", err)
		}
	}
	return s, nil
}

// Connect makes the clients for an API server. It sends nothing. The mapper may
// be nil: then one is made, which asks the API server for its kinds when it first
// needs them.
func Connect(cfg *rest.Config, namespace string, mapper meta.RESTMapper) (*Cluster, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	objects, err := client.NewWithWatch(cfg, client.Options{Scheme: scheme, Mapper: mapper})
	if err != nil {
		return nil, Explain(err, "make a client of the API server")
	}
	core, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, Explain(err, "make a client of the API server")
	}
	return &Cluster{Config: cfg, Objects: objects, Core: core, Namespace: namespace}, nil
}
