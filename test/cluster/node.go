// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Node is one node. Both are this machine; what a node has for itself is its
// network namespace (the first one's is the host's), its cgroup, and a mount
// namespace in which /run, /var/lib, /var/log and /sys/fs/bpf are its own. So
// all paths are those of an ordinary node, and its mounts end with it.
type Node struct {
	// Name is the Node object's: node-1 and node-2.
	Name string
	// Address is the node's address, PodSubnet where its pods' addresses are.
	Address   string
	PodSubnet string
	// Netns is the network namespace's file; the first node's is the host's.
	Netns string
	// PodsCgroup is the folder of cgroup2 that the node's pods are in.
	PodsCgroup string
	// Holder keeps the mount namespace.
	Holder     *Process
	Containerd *Process
	Kubelet    *Process
	Proxy      *Process

	dir string
}

// DNSAddress is where pods look for a name server. There is one only where a test
// makes a Service of this address.
const DNSAddress = "10.96.0.10"

const containerdSocket = "/run/containerd/containerd.sock"

// holderScript makes the mount namespace. Its mounts are shared with pods that
// ask for propagation, and with nobody outside.
const holderScript = `set -e
mount --make-rshared /
for d in lib log; do mount --bind "$1/$d" "/var/$d"; done
mount -t tmpfs -o mode=755 run /run
mkdir /run/netns /run/lock
mount -t bpf bpf /sys/fs/bpf
touch "$1/holds"
exec sleep infinity`

// command returns a command that runs as a program of the node itself does: in
// its mount and network namespaces.
func (n *Node) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	flags := []string{"--mount=" + n.mountNS(), "--net=" + n.Netns, "--", name}
	return exec.CommandContext(ctx, "nsenter", append(flags, args...)...)
}

// Run runs a command on the node, with the node's files and network, and returns
// its standard output.
func (n *Node) Run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := output(ctx, n.command(ctx, name, args...))
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", n.Name, err)
	}
	return string(out), nil
}

func (n *Node) mountNS() string { return "/proc/" + strconv.Itoa(n.Holder.PID) + "/ns/mnt" }

// program describes one of the node's programs.
func (n *Node) program(c *Cluster, cgroup, name string, args ...string) *Process {
	return &Process{
		Name: name + " of " + n.Name, Path: filepath.Join(c.programs, name), Args: args,
		Log: c.log(name + "-" + n.Name), Netns: n.Netns, Mountns: n.mountNS(), Cgroup: cgroup,
		// containerd finds its shim there, and runc.
		Env: []string{"PATH=" + c.programs + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
	}
}

func (c *Cluster) startNode(ctx context.Context, i int, cgroup, proxyMode string) (*Node, error) {
	n := &Node{
		Name: fmt.Sprintf("node-%d", i+1), Address: nodeAddress(i), PodSubnet: podSubnet(i),
		dir: filepath.Join(c.Dir, fmt.Sprintf("node-%d", i+1)),
	}
	if i > 0 {
		n.Netns = filepath.Join("/run/netns", secondNetns)
	}
	for _, d := range []string{"lib", "log", "cni"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make the folders of %s: %w", n.Name, err)
		}
	}
	n.PodsCgroup = filepath.Join(filepath.Dir(cgroup), cgroupRoots[i], "kubepods")
	if cgroupRoots[i] != "" {
		if err := makeCgroupRoot(cgroupRoots[i]); err != nil {
			return nil, err
		}
	}
	n.Holder = &Process{
		Name: "mounts of " + n.Name, Path: "unshare", Log: c.log("mounts-" + n.Name), Cgroup: cgroup,
		Args: []string{"--mount", "--propagation=private", "--", "sh", "-c", holderScript, "sh", n.dir},
	}
	if err := n.Holder.start(); err != nil {
		return nil, err
	}
	if n.Netns == "" {
		n.Netns = fmt.Sprintf("/proc/%d/ns/net", n.Holder.PID)
	}
	err := n.Holder.waitFor(ctx, 20*time.Second, func(context.Context) error {
		_, err := os.Stat(filepath.Join(n.dir, "holds"))
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := n.writeConfigs(c, i, proxyMode); err != nil {
		return nil, err
	}
	config := func(name string) string { return filepath.Join(n.dir, name) }
	n.Containerd = n.program(c, cgroup, "containerd", "--config="+config("containerd.toml"))
	n.Kubelet = n.program(c, cgroup, "kubelet", "--config="+config("kubelet.json"), "--kubeconfig="+config("kubelet.kubeconfig"),
		"--hostname-override="+n.Name, "--node-ip="+n.Address, "--v=1")
	n.Proxy = n.program(c, cgroup, "kube-proxy", "--config="+config("proxy.json"), "--v=1")
	if err := n.Containerd.start(); err != nil {
		return nil, err
	}
	// The kubelet ends when it has no runtime.
	err = n.Containerd.waitFor(ctx, time.Minute, func(ctx context.Context) error {
		_, err := n.ctr(ctx, c, "version")
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, p := range []*Process{n.Kubelet, n.Proxy} {
		if err := p.start(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *Node) ctr(ctx context.Context, c *Cluster, args ...string) (string, error) {
	return n.Run(ctx, filepath.Join(c.programs, "ctr"), append([]string{"--address=" + containerdSocket, "--namespace=k8s.io"}, args...)...)
}

type object = map[string]any

func (n *Node) writeConfigs(c *Cluster, i int, proxyMode string) error {
	for name, user := range map[string][]string{
		"kubelet.kubeconfig": {"system:node:" + n.Name, "system:nodes"},
		"proxy.kubeconfig":   {"system:kube-proxy"},
	} {
		if err := WriteKubeconfig(filepath.Join(n.dir, name), c.User(user[0], user[1:]...)); err != nil {
			return err
		}
	}
	containerd := fmt.Sprintf(`version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = %q

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = %q

[plugins."io.containerd.cri.v1.runtime"]
# A negative oom_score_adj, which pods' sandboxes have, is refused without CAP_SYS_RESOURCE.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [%q]
conf_dir = %q
`, containerdSocket, PauseImage, c.programs, filepath.Join(n.dir, "cni"))
	kubelet := object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address":        n.Address,
		"authentication": object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": false}, "x509": object{"clientCAFile": filepath.Join(c.Dir, "pki", caCert)}},
		"authorization":  object{"mode": "AlwaysAllow"},
		"cgroupDriver":   "cgroupfs", "cgroupRoot": "/" + cgroupRoots[i], "failCgroupV1": false,
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"enforceNodeAllocatable":   []string{}, "evictionHard": object{}, "failSwapOn": false, "localStorageCapacityIsolation": false,
		"makeIPTablesUtilChains": false, "oomScoreAdj": 0, "readOnlyPort": 0, "resolvConf": filepath.Join(n.dir, "resolv.conf"), "volumePluginDir": filepath.Join(n.dir, "plugins"),
		"clusterDNS": []string{DNSAddress}, "clusterDomain": "cluster.local",
		"imageGCHighThresholdPercent": 100, "eventRecordQPS": 0, "kubeAPIQPS": 100, "kubeAPIBurst": 200,
	}
	proxy := object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection":   object{"kubeconfig": filepath.Join(n.dir, "proxy.kubeconfig")},
		"mode":               proxyMode,
		"hostnameOverride":   n.Name,
		"clusterCIDR":        "10.244.0.0/16",
		"bindAddress":        n.Address,
		"healthzBindAddress": n.Address + ":10256", "metricsBindAddress": "127.0.0.1:10249",
		// Such settings are the machine's, which is not only ours.
		"conntrack":   object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
		"oomScoreAdj": 0,
	}
	// Each pod has a link of its own to the node, and no bridge: every packet is
	// routed, and kube-proxy's rules see it also between pods of one node.
	cni := object{
		"cniVersion": "1.0.0", "name": "sidetrack",
		"plugins": []object{{
			"type": "ptp", "mtu": 1500,
			"ipam": object{"type": "host-local", "ranges": [][]object{{{"subnet": n.PodSubnet}}}, "routes": []object{{"dst": "0.0.0.0/0"}}},
		}},
	}
	files := map[string]any{
		"containerd.toml": containerd, "kubelet.json": kubelet, "proxy.json": proxy, "cni/10-sidetrack.conflist": cni,
		// Names are nobody's but the cluster's.
		"resolv.conf": "",
	}
	for name, content := range files {
		text, ok := content.(string)
		if !ok {
			b, err := json.MarshalIndent(content, "", "  ")
			if err != nil {
				return fmt.Errorf("write the configuration of %s: %w", n.Name, err)
			}
			text = string(b)
		}
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("write the configuration of %s: %w", n.Name, err)
		}
	}
	return nil
}

// LoadImages gives images, as docker-archive files, to every node.
func (c *Cluster) LoadImages(ctx context.Context, archives ...string) error {
	failed := make(chan error, len(c.Nodes))
	for _, n := range c.Nodes {
		go func() {
			for _, file := range slices.Clone(archives) {
				abs, err := filepath.Abs(file)
				if err == nil {
					_, err = n.ctr(ctx, c, "images", "import", "--local", abs)
				}
				if err != nil {
					failed <- fmt.Errorf("load image %s: %w", file, err)
					return
				}
			}
			failed <- nil
		}()
	}
	var first error
	for range c.Nodes {
		if err := <-failed; err != nil && first == nil {
			first = err
		}
	}
	return first
}
