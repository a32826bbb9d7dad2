// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/kubernetes"
)

// Where the API server says how its front proxy is known.
const (
	proxyNamespace = metav1.NamespaceSystem
	proxyConfigMap = "extension-apiserver-authentication"
	proxyCA        = "requestheader-client-ca-file"
	clientCA       = "client-ca-file"
)

// errAnybody is why nobody is believed who asks.
var errAnybody = errors.New("the API server takes any user's certificate for its front proxy's, so anybody could pose as anybody: set --requestheader-allowed-names, or an authority of its own with --requestheader-client-ca-file")

// proxy knows the API server's front proxy, and whom it speaks for, and hears when
// that changes.
type proxy struct {
	log     *slog.Logger
	ca      *dynamiccertificates.ConfigMapCAController
	clients *dynamiccertificates.ConfigMapCAController
	headers *headerrequest.RequestHeaderAuthRequestController
	// first are the authorities of users' certificates when it began: clients has none
	// before it has heard of them.
	first []byte

	mu     sync.Mutex
	judged [2]string // authorities that safe has compared last
	shared bool      // one of them is among both
	said   bool
}

func newProxy(ctx context.Context, client kubernetes.Interface, log *slog.Logger) (*proxy, error) {
	cm, err := client.CoreV1().ConfigMaps(proxyNamespace).Get(ctx, proxyConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read how the API server's front proxy is known: %w", err)
	}
	ca := cm.Data[proxyCA]
	if strings.TrimSpace(ca) == "" {
		return nil, fmt.Errorf("the API server has no front proxy: ConfigMap %s/%s has no %s; aggregated APIs need the API server's flags --requestheader-* and --proxy-client-*", proxyNamespace, proxyConfigMap, proxyCA)
	}
	if cm.Data["requestheader-allowed-names"] == "[]" && shareAuthority([]byte(ca), []byte(cm.Data[clientCA])) {
		return nil, errAnybody
	}
	p := &proxy{log: log, first: []byte(cm.Data[clientCA]), headers: headerrequest.NewRequestHeaderAuthRequestController(proxyConfigMap, proxyNamespace, client,
		"requestheader-username-headers", "requestheader-uid-headers", "requestheader-group-headers",
		"requestheader-extra-headers-prefix", "requestheader-allowed-names")}
	if p.ca, err = dynamiccertificates.NewDynamicCAFromConfigMapController("front-proxy", proxyNamespace, proxyConfigMap, proxyCA, client); err != nil {
		return nil, fmt.Errorf("follow the front proxy's authority: %w", err)
	}
	if p.clients, err = dynamiccertificates.NewDynamicCAFromConfigMapController("clients", proxyNamespace, proxyConfigMap, clientCA, client); err != nil {
		return nil, fmt.Errorf("follow the authority of users' certificates: %w", err)
	}
	if err := errors.Join(p.ca.RunOnce(ctx), p.headers.RunOnce(ctx)); err != nil {
		return nil, fmt.Errorf("read how the API server's front proxy is known: %w", err)
	}
	return p, nil
}

// run follows what the API server says until ctx is over. It returns at once.
func (p *proxy) run(ctx context.Context) {
	go p.ca.Run(ctx, 1)
	go p.clients.Run(ctx, 1)
	go p.headers.Run(ctx, 1)
}

func (p *proxy) authenticator() authenticator.Request {
	value := func(f func() []string) headerrequest.StringSliceProvider {
		return headerrequest.StringSliceProviderFunc(f)
	}
	known := headerrequest.NewDynamicVerifyOptionsSecure(p.ca.VerifyOptions, value(p.headers.AllowedClientNames),
		value(p.headers.UsernameHeaders), value(p.headers.UIDHeaders), value(p.headers.GroupHeaders), value(p.headers.ExtraHeaderPrefixes))
	return authenticator.RequestFunc(func(r *http.Request) (*authenticator.Response, bool, error) {
		if err := p.safe(); err != nil {
			return nil, false, err
		}
		return known.AuthenticateRequest(r)
	})
}

// safe says why the front proxy cannot be told from a user; nil: it can.
func (p *proxy) safe() error {
	users := p.clients.CurrentCABundleContent()
	if users == nil {
		users = p.first
	}
	judged := [2]string{string(p.ca.CurrentCABundleContent()), string(users)}
	named := len(p.headers.AllowedClientNames()) > 0
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.judged != judged {
		p.judged, p.shared = judged, shareAuthority([]byte(judged[0]), users)
	}
	if named || !p.shared {
		p.said = false
		return nil
	}
	if !p.said {
		p.said = true
		p.log.Error("nobody is answered", "err", errAnybody)
	}
	return errAnybody
}

// shareAuthority reports whether two bundles in PEM have an authority in common: the
// same key, whatever certificates of it there are.
func shareAuthority(one, other []byte) bool {
	keys := map[string]bool{}
	for _, c := range certificatesIn(one) {
		keys[string(c.RawSubjectPublicKeyInfo)] = true
	}
	for _, c := range certificatesIn(other) {
		if keys[string(c.RawSubjectPublicKeyInfo)] {
			return true
		}
	}
	return false
}

// certificatesIn leaves out what is none, which verifies nothing either.
func certificatesIn(bundle []byte) (all []*x509.Certificate) {
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil {
			return all
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, c)
		}
	}
}
