// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/sidetrack-dev/sidetrack/test/browser"
)

// pageAs runs "sidetrack ui" as a user until the test is over and returns the
// address that it prints.
func pageAs(t *testing.T, user string, args ...string) string {
	t.Helper()
	cmd := exec.Command(sidetrackProgram(t), append([]string{"--kubeconfig=" + kubeconfigOf(t, user), "-n", shop, "ui"}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start sidetrack ui: %v", err)
	}
	t.Cleanup(func() {
		err := cmd.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if err = errors.Join(err, cmd.Wait()); err != nil {
			t.Errorf("sidetrack ui ends with %v: %s", err, said.String())
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("sidetrack ui prints no address: %v: %s", err, said.String())
	}
	return strings.TrimSpace(line)
}

// kubectlProxy runs "kubectl proxy" until the test is over and returns where.
func kubectlProxy(t *testing.T) string {
	t.Helper()
	cmd, err := kube.KubectlCommand(context.WithoutCancel(t.Context()), "proxy", "--port=0")
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatalf("start kubectl proxy: %v", err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("stop kubectl proxy: %v", err)
		}
		// It was killed: it has nothing to say.
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	_, address, ok := strings.Cut(strings.TrimSpace(line), "Starting to serve on ")
	if err != nil || !ok {
		t.Fatalf("kubectl proxy says %q, %v", line, err)
	}
	return "http://" + address
}

// kubeconfigOf writes a kubeconfig of a user who has the rights that are bound to
// that name, and no others.
func kubeconfigOf(t *testing.T, user string) string {
	t.Helper()
	cfg := kube.User(user)
	cluster := clientcmdapi.NewCluster()
	cluster.Server, cluster.CertificateAuthorityData = cfg.Host, cfg.CAData
	info := clientcmdapi.NewAuthInfo()
	info.ClientCertificateData, info.ClientKeyData = cfg.CertData, cfg.KeyData
	at := clientcmdapi.NewContext()
	at.Cluster, at.AuthInfo = "it", user
	all := clientcmdapi.NewConfig()
	all.Clusters["it"], all.AuthInfos[user], all.Contexts["it"], all.CurrentContext = cluster, info, at, "it"
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*all, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// shows is an expression: an element that a selector finds has this text.
func shows(selector, text string) string {
	return fmt.Sprintf("[...document.querySelectorAll(%q)].some((e) => e.textContent.includes(%q))", selector, text)
}

// pageInABrowser shows a browser a sandbox of its own, as three people see it.
func pageInABrowser(t *testing.T) {
	pictures := filepath.Join(root, "bin", "ui")
	apply(t, `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: viewer}]
`)
	deleteAfterwards(t, "rolebinding", "-n", shop, "viewer")
	// A sandbox of its own, whose ledger has nothing of other chapters.
	key := newKey("seen")
	apply(t, `
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: seen, namespace: shop}
spec:
  routingKey: `+key+`
  forks:
  - workload: {kind: Deployment, name: route}
    containers: [{name: route, image: "sidetrack.test/shop:pr-42"}]
  observe: [front, cart]
`)
	deleteAfterwards(t, "-n", shop, "sandbox/seen")
	untilReady(t, "seen")
	header := func(trace, lose string) map[string]string {
		h := tag(key)
		h["Traceparent"], h["X-Lose"] = "00-"+trace+"-00f067aa0ba902b7-01", lose
		return h
	}

	p := browser.Open(t)
	p.MustSize(1280, 860)
	p.MustGo(pageAs(t, "viewer", "seen"))
	p.MustWait(shows("#link", "live"))
	p.MustWait(shows(".chip.ok", "Ready"))
	p.MustWait(shows("nav li", "nodes 2/2"))

	// Requests appear as they are made, through to the fork.
	w := runners(t)
	eventually(t, time.Minute, w[0].gets(front, header(newTrace(), "none"), forkOnWay))
	p.MustWait(shows(".node.service", "front"))
	p.MustWait(shows(".node.fork", "route"))
	p.MustBe("!document.querySelector('.node.lost, .edge.lost, li.lost')")
	// And one that loses the key on its way, in red.
	lost := newTrace()
	eventually(t, time.Minute, w[1].gets(front, header(lost, "front"), untouched))
	p.MustWait(shows(".node.lost", "front"))
	p.MustWait("document.querySelector('.edge.lost')")
	p.MustClick("#requests li.lost")
	p.MustWait(shows(".hop.lost .verdict", "Deployment/front lost the key"))
	p.MustBe(shows(".trace", lost))
	p.MustShoot(pictures, "cluster")
	p.MustClick("#tab-forks")
	p.MustWait(shows("td", "Running"))
	p.MustClick("#tab-nodes")
	// Who may look at a namespace may not look at nodes, and is told so.
	p.MustWait(shows(".gap", "cannot list resource \"nodestates\""))
	p.MustBe(shows("td", "node-1"))
	p.MustShoot(pictures, "cluster-nodes")
	if text := browser.MustGet[string](p, "document.documentElement.outerHTML"); strings.Contains(text, key) {
		t.Error("the routing key is in the page")
	}
	if c := p.Complaints(); len(c) > 0 {
		t.Errorf("the page complains: %q", c)
	}
	address, _, _ := strings.Cut(strings.TrimPrefix(browser.MustGet[string](p, "location.href"), "http://"), "/")
	for _, url := range p.Asked() {
		if !strings.HasPrefix(url, "http://"+address+"/") && url != "about:blank" {
			t.Errorf("the page has asked for %s", url)
		}
	}

	// kubectl's own proxy does for a browser, too.
	proxied := browser.Open(t)
	proxied.MustGo(kubectlProxy(t) + "/apis/ledger.sidetrack.dev/v1alpha1/ui/index.html#/shop/sandboxes/seen")
	proxied.MustWait(shows("#link", "live"))
	proxied.MustWait(shows("#requests li", "key lost"))

	// Who has no rights in the namespace gets the page, and nothing on it.
	eve := browser.Open(t)
	eve.MustSize(1280, 860)
	eve.MustGo(pageAs(t, "eve", "seen"))
	eve.MustWait(shows(".problem", "Forbidden"))
	eve.MustWait(shows(".problem", `User "eve" cannot list resource`))
	eve.MustBe("!document.querySelector('.node, #requests li, nav li, .chip.ok')")
	eve.MustShoot(pictures, "cluster-forbidden")
}
