// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// ControlPlane is etcd and a kube-apiserver.
type ControlPlane struct {
	// URL is the API server's.
	URL string
	// Dir holds everything of it: keys, data, logs.
	Dir string

	programs  string
	ca        *authority
	etcd      *Process
	apiserver *Process

	mu     sync.Mutex
	admin  *rest.Config
	config string // the file of the administrator's kubeconfig
}

// planeOptions say how a control plane of a whole cluster differs from one
// without nodes.
type planeOptions struct {
	dir       string
	address   string
	port      int // 0: any
	cgroup    string
	dieWithUs bool
	flags     []string
}

// serviceCIDR has the API server's own address as its first one.
const (
	serviceCIDR    = "10.96.0.0/16"
	serviceAddress = "10.96.0.1"
)

// frontProxy is the name that the API server has where it asks for others.
const frontProxy = "front-proxy-client"

func startPlane(ctx context.Context, programs string, o planeOptions) (_ *ControlPlane, err error) {
	c := &ControlPlane{Dir: o.dir, programs: programs}
	for _, dir := range []string{"pki", "logs"} {
		if err := os.MkdirAll(filepath.Join(o.dir, dir), 0o755); err != nil {
			return nil, fmt.Errorf("make the control plane's folder: %w", err)
		}
	}
	pki := filepath.Join(o.dir, "pki")
	if c.ca, err = newAuthority(pki); err != nil {
		return nil, err
	}
	cert, key, err := c.ca.server([]net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(o.address), net.ParseIP(serviceAddress)},
		[]string{"kubernetes", "localhost", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"})
	if err != nil {
		return nil, err
	}
	// With this one the API server goes to kubelets, for logs and exec.
	kubeletCert, kubeletKey, err := c.ca.user("apiserver-kubelet-client", []string{"system:masters"})
	if err != nil {
		return nil, err
	}
	// And with this one to aggregated APIs, for whoever has asked it. Nothing else is
	// signed by that authority.
	front := filepath.Join(pki, "front-proxy")
	if err := os.MkdirAll(front, 0o755); err != nil {
		return nil, fmt.Errorf("make the front proxy's folder: %w", err)
	}
	proxy, err := newAuthority(front)
	if err != nil {
		return nil, err
	}
	proxyCert, proxyKey, err := proxy.user(frontProxy, nil)
	if err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{"front-proxy/client.crt": proxyCert, "front-proxy/client.key": proxyKey, "apiserver.crt": cert, "apiserver.key": key, "kubelet-client.crt": kubeletCert, "kubelet-client.key": kubeletKey} {
		if err := os.WriteFile(filepath.Join(pki, name), text, 0o600); err != nil {
			return nil, fmt.Errorf("write the API server's keys: %w", err)
		}
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	if o.port != 0 {
		ports[2] = o.port
	}
	c.URL = "https://" + net.JoinHostPort(o.address, strconv.Itoa(ports[2]))
	etcdURL, peerURL := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	c.etcd = &Process{
		Name: "etcd", Path: filepath.Join(programs, "etcd"), Log: c.log("etcd"), Cgroup: o.cgroup, dieWithUs: o.dieWithUs,
		Args: []string{
			"--name=one", "--data-dir=" + filepath.Join(o.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=" + etcdURL, "--advertise-client-urls=" + etcdURL,
			"--listen-peer-urls=" + peerURL, "--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=one=" + peerURL,
		},
	}
	c.apiserver = &Process{
		Name: "kube-apiserver", Path: filepath.Join(programs, "kube-apiserver"), Log: c.log("kube-apiserver"), Cgroup: o.cgroup, dieWithUs: o.dieWithUs,
		Args: append([]string{
			"--etcd-servers=" + etcdURL, "--bind-address=" + o.address, "--secure-port=" + strconv.Itoa(ports[2]),
			"--cert-dir=" + pki, "--tls-cert-file=" + filepath.Join(pki, "apiserver.crt"), "--tls-private-key-file=" + filepath.Join(pki, "apiserver.key"),
			"--client-ca-file=" + filepath.Join(pki, caCert), "--authorization-mode=Node,RBAC", "--allow-privileged=true",
			"--service-cluster-ip-range=" + serviceCIDR, "--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-signing-key-file=" + filepath.Join(pki, caKey), "--service-account-key-file=" + filepath.Join(pki, caKey),
			"--kubelet-client-certificate=" + filepath.Join(pki, "kubelet-client.crt"), "--kubelet-client-key=" + filepath.Join(pki, "kubelet-client.key"),
			"--requestheader-client-ca-file=" + filepath.Join(front, caCert), "--requestheader-allowed-names=" + frontProxy,
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + filepath.Join(front, "client.crt"), "--proxy-client-key-file=" + filepath.Join(front, "client.key"),
			// Its own goroutines share few cores with everything else.
			"--shutdown-delay-duration=0s", "--profiling=false",
		}, o.flags...),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if err := c.etcd.start(); err != nil {
		return nil, err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *ControlPlane) log(name string) string { return filepath.Join(c.Dir, "logs", name+".log") }

// freePorts finds ports of 127.0.0.1 that nobody uses now.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		// They stay open until all are found, so that no two are the same.
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// StartAPIServer starts the API server, which StopAPIServer has stopped, and
// waits until it is ready.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	if err := c.apiserver.start(); err != nil {
		return err
	}
	transport, err := rest.TransportFor(c.Admin())
	if err != nil {
		return fmt.Errorf("make a client of the API server: %w", err)
	}
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	return c.apiserver.waitFor(ctx, 2*time.Minute, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", resp.Status)
		}
		return nil
	})
}

// StopAPIServer kills the API server, as an outage does. What it has stored
// stays.
func (c *ControlPlane) StopAPIServer() error { return c.apiserver.stop(0) }

// stop ends both programs. What they have stored is not worth a polite end.
func (c *ControlPlane) stop() error {
	return errors.Join(c.apiserver.stop(0), c.etcd.stop(0))
}

// Admin returns a client's configuration for an administrator who may do
// everything. The caller may change it.
func (c *ControlPlane) Admin() *rest.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admin == nil {
		c.admin = c.User("admin", "system:masters")
	}
	return rest.CopyConfig(c.admin)
}

// User returns a client's configuration for a user with these groups, who
// exists by being named. RBAC says what they may do.
func (c *ControlPlane) User(name string, groups ...string) *rest.Config {
	cert, key, err := c.ca.user(name, groups)
	if err != nil {
		panic(err) // only without a source of randomness
	}
	cfg := c.anonymous()
	cfg.CertData, cfg.KeyData = cert, key
	return cfg
}

func (c *ControlPlane) anonymous() *rest.Config {
	return &rest.Config{
		Host: c.URL,
		// Tests wait for the server, not for their own client.
		QPS:             -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.ca.certPEM},
	}
}

// ServiceAccount returns a client's configuration with a token of a service
// account, which is made, with its namespace, when it is not there.
func (c *ControlPlane) ServiceAccount(ctx context.Context, namespace, name string) (*rest.Config, error) {
	k, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	_, err = k.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make namespace %s: %w", namespace, err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	if _, err := k.CoreV1().ServiceAccounts(namespace).Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("make service account %s/%s: %w", namespace, name, err)
	}
	return c.Token(ctx, namespace, name, "")
}

// Token returns a client's configuration with a token of a service account that is
// there: what the kubelet would give to a pod of its on a node, which is made; without
// a node, one that is nobody's.
func (c *ControlPlane) Token(ctx context.Context, namespace, name, node string) (*rest.Config, error) {
	k, err := kubernetes.NewForConfig(c.Admin())
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	request := &authenticationv1.TokenRequest{}
	if node != "" {
		pod, err := k.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "agent-"},
			Spec:       corev1.PodSpec{ServiceAccountName: name, NodeName: node, Containers: []corev1.Container{{Name: "agent", Image: "agent"}}},
		}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("make a pod of service account %s/%s on node %s: %w", namespace, name, node, err)
		}
		request.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}
	}
	token, err := k.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, request, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("get a token of service account %s/%s: %w", namespace, name, err)
	}
	cfg := c.anonymous()
	cfg.BearerToken = token.Status.Token
	return cfg, nil
}

// Kubeconfig returns the file with which kubectl is the administrator.
func (c *ControlPlane) Kubeconfig() (string, error) {
	admin := c.Admin()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.config != "" {
		return c.config, nil
	}
	file := filepath.Join(c.Dir, "kubeconfig")
	if err := WriteKubeconfig(file, admin); err != nil {
		return "", err
	}
	c.config = file
	return file, nil
}

// WriteKubeconfig writes a client's configuration as a file for kubectl and for
// every other program.
func WriteKubeconfig(file string, cfg *rest.Config) error {
	const name = "sidetrack-test"
	kc := clientcmdapi.NewConfig()
	kc.Clusters[name] = &clientcmdapi.Cluster{Server: cfg.Host, CertificateAuthorityData: cfg.CAData}
	kc.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: cfg.CertData, ClientKeyData: cfg.KeyData, Token: cfg.BearerToken}
	kc.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	kc.CurrentContext = name
	if err := clientcmd.WriteToFile(*kc, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}
