// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"golang.org/x/sys/unix"
)

// Cluster is a control plane, its controllers, and two nodes.
type Cluster struct {
	*ControlPlane
	Nodes []*Node

	controllers []*Process
}

// Options say how a cluster is built.
type Options struct {
	// ProxyMode is kube-proxy's: nftables (the default), iptables, or mixed, which
	// is iptables on the second node only.
	ProxyMode string
	// Owned makes the cluster's end follow the calling process: Sweep takes it away
	// once that process is gone.
	Owned bool
}

// Dir is where a machine's one cluster is.
func Dir() string { return filepath.Join(os.TempDir(), "sidetrack-cluster") }

// ErrRuns is returned by Up when there is a cluster already.
var ErrRuns = errors.New("a cluster runs on this machine already")

const stateFile = "state.json"

// state is what a later process must know of a cluster.
type state struct {
	// Owner is the process whose end is the cluster's, if there is one.
	Owner      int    `json:",omitempty"`
	OwnerBegan uint64 `json:",omitempty"`
	Programs   string
	ProxyMode  string
	URL        string
	// Forwarding is what the host's net.ipv4.ip_forward was before.
	Forwarding  string
	Etcd        *Process   `json:",omitempty"`
	APIServer   *Process   `json:",omitempty"`
	Controllers []*Process `json:",omitempty"`
	Nodes       []*Node    `json:",omitempty"`
}

func (s *state) orphaned() bool {
	if s.Owner == 0 {
		return false
	}
	began, err := birth(s.Owner)
	return err != nil || began != s.OwnerBegan
}

func readState() (*state, error) {
	b, err := os.ReadFile(filepath.Join(Dir(), stateFile))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read the cluster's state: %w", err)
	}
	return &s, nil
}

func (s *state) write() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	file := filepath.Join(Dir(), stateFile)
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	return nil
}

// lock keeps two processes from building or removing the cluster at once.
func lock() (unlock func(), err error) {
	f, err := os.OpenFile(Dir()+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another process starts or removes a cluster just now: %w", err)
	}
	return func() { f.Close() }, nil
}

// Up starts a cluster and waits until its nodes are ready. The remains of one
// whose owner is dead are removed first. When it fails it leaves nothing but the
// folder with the logs.
func Up(ctx context.Context, o Options) (_ *Cluster, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster with nodes needs root")
	}
	programs, err := Programs(ctx)
	if err != nil {
		return nil, err
	}
	unlock, err := lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if old, err := readState(); err == nil && !old.orphaned() {
		return nil, fmt.Errorf("%w, in %s", ErrRuns, Dir())
	}
	if err := clean(); err != nil {
		return nil, err
	}
	if err := noKubelet(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(Dir(), 0o755); err != nil {
		return nil, fmt.Errorf("make the cluster's folder: %w", err)
	}
	s := &state{Programs: programs, ProxyMode: o.ProxyMode}
	if s.ProxyMode == "" {
		s.ProxyMode = "nftables"
	}
	if o.Owned {
		s.Owner = os.Getpid()
		if s.OwnerBegan, err = birth(s.Owner); err != nil {
			return nil, fmt.Errorf("find this process's start: %w", err)
		}
	}
	if s.Forwarding, err = readSetting("net/ipv4/ip_forward"); err != nil {
		return nil, err
	}
	// Before anything else is made: what a killed process leaves can be found.
	if err := s.write(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("%w\n(logs: %s)", err, keepLogs()), clean())
		}
	}()
	if err := buildNetwork(ctx); err != nil {
		return nil, err
	}
	cgroup, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	plane, err := startPlane(ctx, programs, planeOptions{
		dir: Dir(), address: nodeAddress(0), port: 6443, cgroup: cgroup,
		flags: []string{"--enable-admission-plugins=NodeRestriction", "--kubelet-preferred-address-types=InternalIP", "--advertise-address=" + nodeAddress(0)},
	})
	if err != nil {
		return nil, err
	}
	c := &Cluster{ControlPlane: plane}
	s.URL, s.Etcd, s.APIServer = plane.URL, plane.etcd, plane.apiserver
	if err := c.startControllers(cgroup); err != nil {
		return nil, err
	}
	s.Controllers = c.controllers
	pause, err := pauseImage(ctx)
	if err != nil {
		return nil, err
	}
	for i := range 2 {
		n, err := c.startNode(ctx, i, cgroup, proxyMode(s.ProxyMode, i))
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, n)
	}
	s.Nodes = c.Nodes
	if err := s.write(); err != nil {
		return nil, err
	}
	if err := c.LoadImages(ctx, pause); err != nil {
		return nil, err
	}
	return c, c.waitForNodes(ctx)
}

func proxyMode(cluster string, node int) string {
	if cluster == "mixed" {
		return []string{"nftables", "iptables"}[node]
	}
	return cluster
}

// keepLogs moves the logs of a cluster that could not be started to where clean
// does not remove them.
func keepLogs() string {
	dir := Dir() + ".logs"
	if err := os.RemoveAll(dir); err != nil {
		return err.Error()
	}
	if err := os.Rename(filepath.Join(Dir(), "logs"), dir); err != nil {
		return err.Error()
	}
	return dir
}

// Open returns the cluster that runs on this machine.
func Open() (*Cluster, error) {
	s, err := readState()
	if err != nil {
		return nil, err
	}
	if len(s.Nodes) == 0 || s.Etcd == nil || s.APIServer == nil {
		return nil, fmt.Errorf("the cluster in %s is not complete", Dir())
	}
	ca, err := openAuthority(filepath.Join(Dir(), "pki"))
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		ControlPlane: &ControlPlane{URL: s.URL, Dir: Dir(), programs: s.Programs, ca: ca, etcd: s.Etcd, apiserver: s.APIServer},
		Nodes:        s.Nodes,
		controllers:  s.Controllers,
	}
	for _, p := range c.processes() {
		if !p.running() {
			return nil, fmt.Errorf("%s of the cluster in %s does not run; its log ends:\n%s", p.Name, Dir(), tail(p.Log, 10))
		}
	}
	return c, nil
}

func (c *Cluster) processes() []*Process {
	all := append([]*Process{c.etcd, c.apiserver}, c.controllers...)
	for _, n := range c.Nodes {
		all = append(all, n.Holder, n.Containerd, n.Kubelet, n.Proxy)
	}
	return all
}

// Down removes the machine's cluster, whoever has started it and however much
// of it there is.
func Down() error {
	unlock, err := lock()
	if err != nil {
		return err
	}
	defer unlock()
	return clean()
}

// Sweep removes a cluster whose owner is dead, and reports whether there was
// one.
func Sweep() (bool, error) {
	unlock, err := lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	s, err := readState()
	if err != nil || !s.orphaned() {
		return false, nil //nolint:nilerr // no state, no cluster
	}
	return true, clean()
}

// StartAPIServer starts the API server again, and notes which process it is now.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if err := c.ControlPlane.StartAPIServer(ctx); err != nil {
		return err
	}
	s, err := readState()
	if err != nil {
		return err
	}
	s.APIServer = c.apiserver
	return s.write()
}

// startControllers starts what makes a control plane do something.
func (c *Cluster) startControllers(cgroup string) error {
	pki := filepath.Join(c.Dir, "pki")
	ports, err := freePorts(2)
	if err != nil {
		return err
	}
	for i, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		config := filepath.Join(c.Dir, name+".kubeconfig")
		if err := WriteKubeconfig(config, c.User("system:"+name)); err != nil {
			return err
		}
		args := []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--leader-elect=false", "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[i]),
		}
		if name == "kube-controller-manager" {
			args = append(args, "--service-account-private-key-file="+filepath.Join(pki, caKey), "--root-ca-file="+filepath.Join(pki, caCert),
				"--use-service-account-credentials", "--allocate-node-cidrs=false", "--cert-dir="+pki,
				// Its default is made on the host when it is not there.
				"--flex-volume-plugin-dir="+filepath.Join(c.Dir, "plugins"))
		} else {
			args = append(args, "--cert-dir="+pki)
		}
		p := &Process{Name: name, Path: filepath.Join(c.programs, name), Args: args, Log: c.log(name), Cgroup: cgroup}
		if err := p.start(); err != nil {
			return err
		}
		c.controllers = append(c.controllers, p)
	}
	return nil
}

func (c *Cluster) waitForNodes(ctx context.Context) error {
	k, err := kubernetes.NewForConfig(rest.CopyConfig(c.Admin()))
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	for _, n := range c.Nodes {
		err := n.Kubelet.waitFor(ctx, 3*time.Minute, func(ctx context.Context) error {
			node, err := k.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, cond := range node.Status.Conditions {
				if cond.Type == corev1.NodeReady {
					if cond.Status == corev1.ConditionTrue {
						return nil
					}
					return errors.New(strings.TrimSpace(cond.Message))
				}
			}
			return errors.New("it has not said whether it is ready")
		})
		if err != nil {
			return err
		}
		// Pods need it.
		err = n.Proxy.waitFor(ctx, time.Minute, func(ctx context.Context) error {
			_, err := k.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
