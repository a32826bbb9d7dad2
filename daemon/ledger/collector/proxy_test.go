// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// authority signs certificates of clients.
type authority struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
	bundle string
	serial int64
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key}
	a.renew(t, name)
	return a
}

// renew makes another certificate of the same key.
func (a *authority) renew(t *testing.T, name string) {
	t.Helper()
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.bundle = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// client has a certificate of the authority's.
func (a *authority) client(t *testing.T, s *httptest.Server, name string) *http.Client {
	t.Helper()
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	transport := s.Client().Transport.(*http.Transport).Clone()
	transport.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: a.key}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func TestTheFrontProxysAuthorityIsFollowedAndNeverThatOfUsers(t *testing.T) {
	old, next, users := newAuthority(t, "front-proxy"), newAuthority(t, "front-proxy-2"), newAuthority(t, "kubernetes")
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: proxyNamespace, Name: proxyConfigMap}, Data: map[string]string{
		proxyCA: old.bundle, clientCA: users.bundle, "requestheader-allowed-names": "[]",
		"requestheader-username-headers": `["X-Remote-User"]`, "requestheader-uid-headers": `["X-Remote-Uid"]`,
		"requestheader-group-headers": `["X-Remote-Group"]`, "requestheader-extra-headers-prefix": `["X-Remote-Extra-"]`,
	}}
	client := fake.NewClientset(cm)
	p, err := newProxy(t.Context(), client, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p.run(t.Context())
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if reply, ok, err := p.authenticator().AuthenticateRequest(r); err != nil || !ok {
			w.WriteHeader(http.StatusUnauthorized)
		} else {
			_, _ = w.Write([]byte(reply.User.GetName()))
		}
	}))
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	speaksForJoe := func(c *http.Client) bool {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Remote-User", "joe")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}
	change := func(key, value string) {
		t.Helper()
		cm = cm.DeepCopy()
		cm.Data[key] = value
		if _, err := client.CoreV1().ConfigMaps(proxyNamespace).Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	byOld, byNext, byUsers := old.client(t, s, "proxy"), next.client(t, s, "proxy"), users.client(t, s, "eve")
	eventually(t, "the front proxy is known", func() bool { return speaksForJoe(byOld) })
	if speaksForJoe(byNext) || speaksForJoe(byUsers) {
		t.Error("a stranger speaks for joe")
	}
	// The authority is changed: both hold for a while, as the API server has it.
	change(proxyCA, old.bundle+next.bundle)
	eventually(t, "the next authority holds", func() bool { return speaksForJoe(byNext) && speaksForJoe(byOld) })
	change(proxyCA, next.bundle)
	eventually(t, "the old one does not any more", func() bool { return !speaksForJoe(byOld) })
	if !speaksForJoe(byNext) {
		t.Error("the next one does not hold alone")
	}
	// It comes to be that of users, by another certificate of the same key.
	users.renew(t, "kubernetes, renewed")
	change(proxyCA, next.bundle+"\n"+users.bundle)
	eventually(t, "nobody is believed", func() bool { return !speaksForJoe(byNext) })
	if speaksForJoe(byUsers) {
		t.Error("a user speaks for joe")
	}
	// Names tell them apart.
	change("requestheader-allowed-names", `["proxy"]`)
	eventually(t, "the proxy is known by its name", func() bool { return speaksForJoe(byNext) })
	if speaksForJoe(byUsers) {
		t.Error("a user speaks for joe")
	}
	change("requestheader-allowed-names", "[]")
	eventually(t, "nobody is believed without names", func() bool { return !speaksForJoe(byNext) })
	change(proxyCA, next.bundle)
	eventually(t, "all is well again", func() bool { return speaksForJoe(byNext) })

	// And at the start.
	change(proxyCA, "# another text\n"+users.bundle)
	if _, err := newProxy(t.Context(), client, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "--requestheader-allowed-names") {
		t.Errorf("at the start it says %v", err)
	}
}
