// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/collector"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/responder"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/wire"
	"github.com/sidetrack-dev/sidetrack/routing"
	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

// nodeLedger is a node's ledger with requests to one Service.
type nodeLedger struct {
	*ledger.Ledger
	table *routing.Table
}

func newNodeLedger(t *testing.T, node string) *nodeLedger {
	t.Helper()
	name := func(n string) routing.Name { return routing.Name{Namespace: "team", Name: n} }
	ports := []routing.ServicePort{{Name: "http", Port: 80, Protocol: routing.TCP}}
	table, problems := routing.Compile(routing.Input{
		Services: []routing.Service{
			{Name: name("route"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.7")}, Ports: ports},
			{Name: name("cart"), Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.8")}, Ports: ports},
		},
		Slices: []routing.EndpointSlice{{
			Name: name("cart-1"), Service: "cart", Ports: []routing.EndpointPort{{Name: "http", Port: 8080, Protocol: routing.TCP}},
			Endpoints: []routing.Endpoint{{Addr: netip.MustParseAddr("10.244.1.6"), Ready: true, Pod: "cart-0"}},
		}},
		Sandboxes: []routing.Sandbox{{
			Name: name("pr-1"), Key: "key-of-pr-1", Observe: []string{"cart"}, Propagate: true,
			Redirects: []routing.Redirect{{From: routing.ServiceRef{Service: "route"}, To: routing.Target{Address: netip.MustParseAddr("10.9.9.9")}}},
		}},
	}, nil)
	for _, p := range problems {
		t.Fatal(p)
	}
	return &nodeLedger{ledger.New(ledger.Config{Node: node}), table}
}

// begin has the table in force, and cart's pod on the node.
func (l *nodeLedger) begin() {
	l.SetPods(map[routing.Cookie]*ledger.Pod{5: {Name: routing.Name{Namespace: "team", Name: "cart-0"}, Workload: "Deployment/cart"}})
	l.SetTable(l.table)
}

// open decides about a request as the router does.
func (l *nodeLedger) open(source routing.Cookie, dialled, key, trace string) (*ledger.Entry, routing.Decision) {
	to := netip.MustParseAddrPort(dialled)
	dest, _ := l.table.LookupDest(to, routing.TCP)
	var keys routing.KeySet
	if key != "" {
		names := routing.DefaultKeyNames()
		keys.Add(&names, routing.InHeader, []byte(key))
	}
	d := l.table.DecideRequest(source, dest.ID, &keys)
	c := &ledger.Call{Table: l.table, Source: source, Dest: dest.ID, Dialled: to, Keyed: keys.Seen()}
	if trace != "" {
		c.Traceparent = []byte("00-" + trace + "-00f067aa0ba902b7-01")
	}
	return l.Open(c, &d), d
}

// request records one that was tagged for the sandbox.
func (l *nodeLedger) request(path string) {
	e, _ := l.open(1, "10.96.0.7:80", "key-of-pr-1", "")
	e.Ask([]byte("GET"), []byte("route"), []byte(path))
	e.Status = 200
	l.Finish(e)
}

// TestTheLedgerIsReadByWhoMayReadTheSandboxAndNobodyElse runs the collector and the
// agents' part of it with the installation's permissions against a real API server.
func TestTheLedgerIsReadByWhoMayReadTheSandboxAndNobodyElse(t *testing.T) {
	plane := cluster.StartControlPlane(t)
	s := &installed{T: t, ctx: t.Context(), plane: plane}
	var err error
	s.admin, err = kubernetes.NewForConfig(plane.Admin())
	s.must(err)
	s.must(plane.Apply(s.ctx, manifest))
	listener := s.collect()

	// Two nodes answer. Of a third there is a NodeState, and no agent.
	ledgers := map[string]*nodeLedger{}
	for _, node := range []string{"one", "two", "three"} {
		s.node(node)
		config := s.token("sidetrack-agent", node)
		client, err := dynamic.NewForConfig(config)
		s.must(err)
		s.eventually(func() error {
			_, err := client.Resource(nodeStates).Apply(s.ctx, node, nodeState(node), metav1.ApplyOptions{FieldManager: "sidetrackd", Force: true})
			return err
		})
		if node == "three" {
			continue
		}
		ledgers[node] = newNodeLedger(t, node)
		r, err := responder.Start(config, node, ledgers[node].Ledger, slog.New(slog.DiscardHandler))
		s.must(err)
		ledgers[node].begin()
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	s.must(plane.ApplyYAML(s.ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-1, namespace: team}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: view, namespace: team}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: joe}]
---
apiVersion: v1
kind: Namespace
metadata: {name: elsewhere}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: admin, namespace: elsewhere}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sidetrack-view}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: eve}]
`))
	joe, eve := s.as(plane.User("joe", "system:authenticated")), s.as(plane.User("eve", "system:authenticated"))
	ledgers["one"].request("/1")
	ledgers["two"].request("/2")
	ledgers["one"].request("/3")

	path := (&ledgerv1alpha1.Options{}).Path("sandboxes", "team", "pr-1")
	answers := func(list *ledgerv1alpha1.RecordList) (out []string) {
		for _, r := range list.Items {
			out = append(out, r.Node+" "+r.Request.Path)
		}
		for _, n := range list.Nodes {
			out = append(out, fmt.Sprintf("%s %t %s", n.Node, n.Answered, n.Message))
		}
		return out
	}
	want := []string{"one /1", "two /2", "one /3", "one true ", "three false its agent is not connected to the collector, now or yet", "two true "}
	var list ledgerv1alpha1.RecordList
	s.eventually(func() error {
		status, body := joe.get(path)
		if status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		list = ledgerv1alpha1.RecordList{}
		if err := json.Unmarshal(body, &list); err != nil {
			return err
		}
		if diff := cmp.Diff(want, answers(&list)); diff != "" {
			return fmt.Errorf("the answer (-want +got):\n%s", diff)
		}
		return nil
	})
	status, body := joe.get((&ledgerv1alpha1.Options{Limit: 1}).Path("sandboxes", "team", "pr-1"))
	list = ledgerv1alpha1.RecordList{}
	if err := json.Unmarshal(body, &list); err != nil || status != http.StatusOK || len(list.Items) != 1 || list.Items[0].Request.Path != "/3" ||
		list.Nodes[0].Omitted != 1 || list.Nodes[2].Omitted != 1 {
		t.Errorf("the newest record: %d %s, %v", status, body, err)
	}

	// Whoever may not get the Sandbox reads nothing.
	for who, c := range map[string]*reader{
		"a user of another namespace":           eve,
		"the controller":                        s.as(s.token("sidetrack-controller", "")),
		"an agent":                              s.as(s.token("sidetrack-agent", "one")),
		"the collector itself":                  s.as(s.token("sidetrack-ledger", "")),
		"a user of a Sandbox that is not there": joe,
	} {
		p := path
		if c == joe {
			p = (&ledgerv1alpha1.Options{}).Path("sandboxes", "elsewhere", "pr-1")
		}
		for _, p := range []string{p, strings.Replace(p, "v1alpha1/", "v1alpha1/watch/", 1) + "?follow=true"} {
			if status, body := c.get(p); status != http.StatusForbidden || strings.Contains(string(body), "RecordList") {
				t.Errorf("%s at %s: %d %s", who, p, status, body)
			}
		}
	}
	if status, body := s.as(&rest.Config{Host: plane.URL, TLSClientConfig: rest.TLSClientConfig{CAData: plane.Admin().CAData}}).get(path); status != http.StatusForbidden && status != http.StatusUnauthorized {
		t.Errorf("anybody: %d %s", status, body)
	}
	// An agent answers for its own node, users for none.
	agent := s.as(s.token("sidetrack-agent", "one"))
	if status, body := agent.get(wire.QuestionsPath("two", "x")); status != http.StatusForbidden || !strings.Contains(string(body), "may not answer for node") {
		t.Errorf("the agent of one asks for the questions of two: %d %s", status, body)
	}
	if status, body := s.as(s.token("sidetrack-agent", "")).get(wire.QuestionsPath("one", "x")); status != http.StatusForbidden {
		t.Errorf("a token of no node: %d %s", status, body)
	}
	if status, body := joe.get(wire.QuestionsPath("one", "x")); status != http.StatusForbidden {
		t.Errorf("a user asks for a node's questions: %d %s", status, body)
	}
	// And who goes past the API server, as whomever he says that he is.
	s.past(listener.Addr().String(), path, nil)
	admin := plane.User("admin", "system:masters")
	cert, err := tls.X509KeyPair(admin.CertData, admin.KeyData)
	s.must(err)
	s.past(listener.Addr().String(), path, &cert)

	s.followed(joe, ledgers)
	s.healed(ledgers)
}

// healed: a trace that one node has seen with the key stands for it on another.
func (s *installed) healed(ledgers map[string]*nodeLedger) {
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	if e, d := ledgers["two"].open(5, "10.96.0.7:80", "", trace); d.Inject != "" || e == nil || e.Owner != nil {
		s.Errorf("a call of a trace that nobody knows: %+v, decided %+v", e, d)
	}
	one := ledgers["one"]
	e, d := one.open(1, "10.96.0.8:80", "key-of-pr-1", trace)
	if one.Going(one.table, e, &d, e.Dialled) == nil {
		s.Error("the request does not wait for the other node to be told")
	}
	s.eventually(func() error {
		if e, d := ledgers["two"].open(5, "10.96.0.7:80", "", trace); d.Inject != "key-of-pr-1" || d.Verdict != routing.ToFork || !e.Lost || !e.Healed {
			return fmt.Errorf("cart's call on the other node: %+v, decided %+v", e, d)
		}
		return nil
	})
}

// collect starts the collector, and leads the API server to it: there is no node here
// that its pod could run on.
func (s *installed) collect(change ...func(*collector.Config)) net.Listener {
	s.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.must(s.plane.LeadHere(s.ctx, collector.APIService, ours, "sidetrack-ledger", listener.Addr().(*net.TCPAddr).Port))
	c := collector.DefaultConfig()
	c.REST, c.Listener, c.HealthAddress, c.Namespace = s.token("sidetrack-ledger", ""), listener, "0", ours
	c.Logger = slog.New(slog.DiscardHandler)
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- collector.Run(ctx, c) }()
	s.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.Errorf("the collector: %v", err)
		}
	})
	return listener
}

// reader is a client with somebody's credentials.
type reader struct {
	s      *installed
	host   string
	client *http.Client
}

func (s *installed) as(cfg *rest.Config) *reader {
	s.Helper()
	c, err := rest.HTTPClientFor(cfg)
	s.must(err)
	return &reader{s, cfg.Host, c}
}

func (r *reader) get(path string) (int, []byte) {
	r.s.Helper()
	ctx, cancel := context.WithTimeout(r.s.ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.host+path, http.NoBody)
	r.s.must(err)
	resp, err := r.client.Do(req)
	r.s.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	r.s.must(err)
	return resp.StatusCode, body
}

// past asks the collector itself, in the API server's words: without a certificate
// the handshake fails, and one that is not the API server's is answered 401.
func (s *installed) past(address, path string, cert *tls.Certificate) {
	s.Helper()
	config := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // it is a stranger who asks
	if cert == nil {
		// Nothing is sent: the server's alert is lost when it closes with data unread.
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, config)
		if err == nil {
			s.must(conn.SetReadDeadline(time.Now().Add(20 * time.Second)))
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "tls: certificate required") {
			s.Errorf("who goes past the API server without a certificate is told %v", err)
		}
		return
	}
	config.Certificates = []tls.Certificate{*cert}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "https://"+address+path, http.NoBody)
	s.must(err)
	req.Header.Set("X-Remote-User", "admin")
	req.Header.Set("X-Remote-Group", "system:masters")
	resp, err := client.Do(req)
	s.must(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	s.must(err)
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(string(body), "ask the Kubernetes API server") {
		s.Errorf("who goes past the API server is answered %s: %s", resp.Status, body)
	}
}

// TestACertificateIsRenewedWithoutARestart goes on reading until the first certificate
// has run out.
func TestACertificateIsRenewedWithoutARestart(t *testing.T) {
	plane := cluster.StartControlPlane(t)
	s := &installed{T: t, ctx: t.Context(), plane: plane}
	var err error
	s.admin, err = kubernetes.NewForConfig(plane.Admin())
	s.must(err)
	s.must(plane.Apply(s.ctx, manifest))
	listener := s.collect(func(c *collector.Config) { c.CertificateLife = 40 * time.Second })
	s.must(plane.ApplyYAML(s.ctx, `
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: sidetrack.dev/v1alpha1
kind: Sandbox
metadata: {name: pr-1, namespace: team}
`))
	served := func() *x509.Certificate {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", listener.Addr().String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // which it is, is the question
		s.must(err)
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0]
	}
	first := served()
	path := (&ledgerv1alpha1.Options{}).Path("sandboxes", "team", "pr-1")
	read := func() error {
		if status, body := s.as(plane.Admin()).get(path); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	}
	s.eventually(read)
	second := first
	for deadline := time.Now().Add(5 * time.Minute); second.SerialNumber.Cmp(first.SerialNumber) == 0; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the certificate is never renewed")
		}
		second = served()
	}
	if made := second.NotBefore.Add(time.Hour); made.After(first.NotAfter) {
		t.Errorf("it is renewed at %s, after it had run out", made)
	}
	time.Sleep(time.Until(first.NotAfter) + time.Second)
	s.eventually(read)
	if now := served(); now.SerialNumber.Cmp(first.SerialNumber) == 0 || time.Now().After(now.NotAfter) {
		t.Errorf("the certificate that is served holds until %s", now.NotAfter)
	}
	service, err := dynamic.NewForConfigOrDie(plane.Admin()).Resource(schema.GroupVersionResource{Group: "apiregistration.k8s.io", Version: "v1", Resource: "apiservices"}).
		Get(s.ctx, collector.APIService, metav1.GetOptions{})
	s.must(err)
	text, _, err := unstructured.NestedString(service.Object, "spec", "caBundle")
	s.must(err)
	bundle, err := base64.StdEncoding.DecodeString(text)
	s.must(err)
	if strings.Contains(string(bundle), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: first.Raw}))) {
		t.Error("the certificate that has run out is published still")
	}
}

// followed reads a stream, through the API server and beyond the loss of a node.
func (s *installed) followed(r *reader, ledgers map[string]*nodeLedger) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	o := ledgerv1alpha1.Options{Follow: true}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.host+o.Path("sandboxes", "team", "pr-1"), http.NoBody)
	s.must(err)
	resp, err := r.client.Do(req)
	s.must(err)
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	await := func(what string, seen func(*ledgerv1alpha1.RecordList) bool) {
		s.Helper()
		for lines.Scan() {
			var list ledgerv1alpha1.RecordList
			s.must(json.Unmarshal(lines.Bytes(), &list))
			if seen(&list) {
				return
			}
		}
		s.Fatalf("the stream ended (%v) before it said %s", lines.Err(), what)
	}
	record := func(node, path string) func(*ledgerv1alpha1.RecordList) bool {
		return func(list *ledgerv1alpha1.RecordList) bool {
			for _, r := range list.Items {
				if r.Node == node && r.Request.Path == path {
					return true
				}
			}
			return false
		}
	}
	// Both nodes say what they have, and which node does not answer is said once.
	seen := map[string]bool{}
	await("what there is", func(list *ledgerv1alpha1.RecordList) bool {
		for _, r := range list.Items {
			seen[r.Request.Path] = true
		}
		for _, n := range list.Nodes {
			if n.Node == "three" && !n.Answered {
				seen["three"] = true
			}
		}
		return len(seen) == 4
	})
	ledgers["two"].request("/4")
	await("a new record", record("two", "/4"))
	ledgers["one"].request("/5")
	await("another new record", record("one", "/5"))
}
