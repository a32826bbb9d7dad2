// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// The serving certificate is made by the process that uses it and lives in its
// memory. The API server learns of it from the APIService, of which RBAC lets the
// collector change this one. It is renewed at half its life.
const (
	certificateLife = 365 * 24 * time.Hour
	publishEvery    = 30 * time.Second
	// keepBefore is how long the certificate before is still published: API servers do
	// not hear of another one all at once.
	keepBefore = time.Hour
)

// APIService is the name of the object that leads the API server here.
const APIService = ledgerv1alpha1.Version + "." + ledgerv1alpha1.Group

type identity struct {
	cert tls.Certificate
	pem  []byte // what verifies it
	made time.Time
}

// newIdentity makes a key and a certificate for a name, signed by itself.
func newIdentity(name string, now time.Time, life time.Duration) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		// Clocks differ.
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return &identity{
		cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		made: now,
	}, nil
}

// publisher keeps the APIService true.
type publisher struct {
	name   string // that the certificate is for
	life   time.Duration
	client rest.Interface
	log    *slog.Logger

	now       atomic.Pointer[identity] // is served
	next      *identity                // is published, and served once it has been for a while
	before    []byte                   // verifies what was served before
	changed   time.Time                // when that was
	published atomic.Bool
}

func newPublisher(name string, life time.Duration, client rest.Interface, log *slog.Logger) (*publisher, error) {
	id, err := newIdentity(name, time.Now(), life)
	if err != nil {
		return nil, err
	}
	p := &publisher{name: name, life: life, client: client, log: log}
	p.now.Store(id)
	return p, nil
}

// certificate is for tls.Config.
func (p *publisher) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return &p.now.Load().cert, nil
}

// run publishes, and does so again whenever somebody has changed it, until ctx is
// over.
func (p *publisher) run(ctx context.Context) {
	said := ""
	for {
		err := p.publish(ctx, time.Now())
		p.published.Store(err == nil)
		switch text := fmt.Sprint(err); {
		case ctx.Err() != nil:
			return
		case err == nil:
			said = ""
		case text != said:
			p.log.Error("the certificate is not in the APIService, so the API server cannot ask here; trying again", "apiService", APIService, "err", err)
			said = text
		}
		pause := min(publishEvery, p.life/8)
		if err != nil {
			pause = 2 * time.Second
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// publish does what is due. API servers hear of a certificate some time before it is
// served, or they could not verify it: another is served once it was in the APIService
// for a while. Where somebody has taken it out meanwhile, it waits for as long again,
// unless the one before is about to end.
func (p *publisher) publish(ctx context.Context, now time.Time) error {
	id := p.now.Load()
	if p.next == nil && now.Sub(id.made) <= p.life/2 {
		bundle := id.pem
		if p.before != nil && now.Sub(p.changed) < min(keepBefore, p.life/4) {
			bundle = append(bytes.Clone(bundle), p.before...)
		}
		_, err := p.tell(ctx, bundle)
		return err
	}
	first := p.next == nil
	if first {
		next, err := newIdentity(p.name, now, p.life)
		if err != nil {
			return err
		}
		p.next = next
	}
	known, err := p.tell(ctx, append(bytes.Clone(p.next.pem), id.pem...))
	if err != nil || first || !known && now.Sub(id.made) < p.life*3/4 {
		return err
	}
	p.before, p.changed = id.pem, now
	p.now.Store(p.next)
	p.next = nil
	p.log.Info("another certificate is served", "apiService", APIService)
	return nil
}

// tell has the APIService say that bundle verifies the collector, and reports whether it
// has said so before.
func (p *publisher) tell(ctx context.Context, bundle []byte) (known bool, err error) {
	var have struct {
		Spec struct {
			CABundle []byte `json:"caBundle"`
		} `json:"spec"`
	}
	text, err := p.client.Get().AbsPath("/apis/apiregistration.k8s.io/v1/apiservices", APIService).DoRaw(ctx)
	if err != nil {
		return false, fmt.Errorf("read APIService %s: %w", APIService, err)
	}
	if err := json.Unmarshal(text, &have); err != nil {
		return false, fmt.Errorf("read APIService %s: %w", APIService, err)
	}
	if bytes.Equal(have.Spec.CABundle, bundle) {
		return true, nil
	}
	patch := fmt.Sprintf(`{"spec":{"caBundle":%q}}`, base64.StdEncoding.EncodeToString(bundle))
	if err := p.client.Patch(types.MergePatchType).AbsPath("/apis/apiregistration.k8s.io/v1/apiservices", APIService).
		Body([]byte(patch)).Do(ctx).Error(); err != nil {
		return false, fmt.Errorf("write APIService %s: %w", APIService, err)
	}
	p.log.Info("certificate published", "apiService", APIService)
	return false, nil
}

var errNotPublished = errors.New("the API server does not know the certificate yet")
