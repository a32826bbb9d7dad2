// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/sidetrack-dev/sidetrack/daemon/agent"
	"github.com/sidetrack-dev/sidetrack/daemon/nodestate"
	"github.com/sidetrack-dev/sidetrack/daemon/pods"
	"github.com/sidetrack-dev/sidetrack/daemon/source"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// originFlags say where objects come from: a directory, or a cluster.
type originFlags struct {
	manifests  string
	kubernetes bool
	nodeName   string
	kubeconfig string
	podsCgroup string
}

func (o *originFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&o.manifests, "manifests", o.manifests, "`directory` of the objects: every *.yaml in it is read, and read again when it changes")
	flags.BoolVar(&o.kubernetes, "kubernetes", o.kubernetes, "take the objects from a cluster's API server instead, as the agent of one of its nodes")
	flags.StringVar(&o.nodeName, "node-name", o.nodeName, "`name` of the Node object that stands for this machine, with --kubernetes")
	flags.StringVar(&o.kubeconfig, "kubeconfig", o.kubeconfig, "`file` that says how the API server is reached, with --kubernetes (default: as a pod of the cluster)")
	flags.StringVar(&o.podsCgroup, "pods-cgroup", o.podsCgroup, "`directory` of the cgroup that the node's pods are in, with --kubernetes (default: kubepods or kubepods.slice, wherever that is)")
}

var errNoOrigin = errors.New("--manifests or --kubernetes is needed: where the Kubernetes objects come from")

// validate reports flags that do not go together.
func (o *originFlags) validate(cgroup string) error {
	switch {
	case o.manifests == "" && !o.kubernetes:
		return errNoOrigin
	case o.manifests != "" && o.kubernetes:
		return errors.New("--manifests and --kubernetes exclude one another: leave one of them out")
	case !o.kubernetes && (o.nodeName != "" || o.kubeconfig != "" || o.podsCgroup != ""):
		return errors.New("--node-name, --kubeconfig and --pods-cgroup go with --kubernetes: add it or leave them out")
	case o.kubernetes && o.nodeName == "":
		return errors.New("--node-name is needed with --kubernetes: the name of this machine's Node object")
	case o.kubernetes && cgroup != "":
		return errors.New("--cgroup does not go with --kubernetes: use --pods-cgroup")
	}
	return nil
}

// origin is a source, and who is told what has become of its objects.
type origin struct {
	objects interface {
		agent.Source
		io.Closer
	}
	reporter agent.Reporter // nil: nobody
	api      *rest.Config   // how the API server is reached; nil: there is none
}

// open begins to read. mark is the SO_MARK of the agent's own sockets, keys is told to
// the cluster.
func (o *originFlags) open(mark uint32, keys routing.KeyNames, log *slog.Logger) (origin, error) {
	if !o.kubernetes {
		m, err := source.OpenManifests(o.manifests, log)
		return origin{objects: m}, err
	}
	klog.SetSlogLogger(log)
	cfg, err := o.config(mark)
	if err != nil {
		return origin{}, err
	}
	r, err := nodestate.New(cfg, o.nodeName, buildVersion(), keys, log)
	if err != nil {
		return origin{}, err
	}
	k, err := source.OpenKubernetes(cfg, o.nodeName, log)
	if err != nil {
		return origin{}, errors.Join(err, r.Close())
	}
	return origin{k, r, cfg}, nil
}

// close ends an origin.
func (o origin) Close() error {
	err := o.objects.Close()
	if o.reporter != nil {
		err = errors.Join(err, o.reporter.Close())
	}
	return err
}

// config says how the API server is reached. Connections to it carry the agent's
// mark, so that they go where they are dialled, whatever a sandbox redirects.
func (o *originFlags) config(mark uint32) (*rest.Config, error) {
	var cfg *rest.Config
	var err error
	if o.kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	} else {
		cfg, err = rest.InClusterConfig()
	}
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("this is no pod of a cluster: say with --kubeconfig how the API server is reached")
	}
	if err != nil {
		return nil, fmt.Errorf("how the API server is reached: %w", err)
	}
	cfg.UserAgent = name + "/" + buildVersion()
	dialer := net.Dialer{
		Timeout:   10 * time.Second,
		KeepAlive: 15 * time.Second,
		Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
			}); e != nil {
				return e
			}
			return err
		},
	}
	cfg.Dial = dialer.DialContext
	return cfg, nil
}

// resolver finds the pods' namespaces, and the cgroup to attach to.
func (o *originFlags) resolver(ctx context.Context, log *slog.Logger) (*pods.Resolver, pods.Cgroup, error) {
	if !o.kubernetes {
		return pods.NewResolver(log), pods.Cgroup{}, nil
	}
	c, err := pods.AwaitCgroup(ctx, o.podsCgroup, log)
	if err != nil {
		return nil, c, err
	}
	r, err := pods.NewClusterResolver(c, log)
	return r, c, err
}
