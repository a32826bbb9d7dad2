// SPDX-License-Identifier: Apache-2.0

package collector

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger/page"
)

// Config says how a collector runs.
type Config struct {
	// REST is how to reach the API server.
	REST *rest.Config
	// Address is the host:port that the API server asks, and HealthAddress that of
	// /healthz and /readyz; "0" serves none of the latter.
	Address, HealthAddress string
	// Listener is used instead of Address unless it is nil.
	Listener net.Listener
	// Service and Namespace name the Service by which the API server finds it.
	Service, Namespace string
	// Patience is how long a node may take to answer.
	Patience time.Duration
	// CertificateLife is how long a serving certificate holds. It is renewed, without a
	// restart, at half of it. A year when it is zero.
	CertificateLife time.Duration
	Logger          *slog.Logger
}

// DefaultConfig returns the defaults of everything but REST and Namespace.
func DefaultConfig() Config {
	return Config{
		Address: ":8443", HealthAddress: ":8081", Service: "sidetrack-ledger", Patience: 5 * time.Second, Logger: slog.Default(),
	}
}

// Validate reports what is wrong with it.
func (c *Config) Validate() error {
	switch {
	case c.REST == nil:
		return errors.New("no API server is given")
	case c.Namespace == "" || c.Service == "":
		return errors.New("the Service that leads here is not named: give its name and namespace")
	case c.Patience < time.Second:
		return fmt.Errorf("patience: %s is too short for a node to answer; use seconds", c.Patience)
	case c.CertificateLife != 0 && c.CertificateLife < 10*time.Second:
		return fmt.Errorf("certificate's life: %s is too short for the API server to hear of the next one; use hours", c.CertificateLife)
	case c.Logger == nil:
		return errors.New("no logger is given")
	}
	return nil
}

// Run serves until ctx is over.
func Run(ctx context.Context, c Config) error {
	if err := c.Validate(); err != nil {
		return err
	}
	listener := c.Listener
	if listener == nil {
		var err error
		if listener, err = net.Listen("tcp", c.Address); err != nil {
			return fmt.Errorf("listen for the API server: %w", err)
		}
	}
	defer listener.Close()
	client, err := kubernetes.NewForConfig(c.REST)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	objects, err := dynamic.NewForConfig(c.REST)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	p, err := newProxy(ctx, client, c.Logger)
	if err != nil {
		return err
	}
	certificates, err := newPublisher(c.Service+"."+c.Namespace+".svc", cmp.Or(c.CertificateLife, certificateLife), client.CoreV1().RESTClient(), c.Logger)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.run(ctx)
	published := make(chan struct{})
	go func() {
		defer close(published)
		certificates.run(ctx)
	}()
	defer func() {
		cancel()
		<-published
	}()

	health, err := serveHealth(c, certificates)
	if err != nil {
		return err
	}
	defer health.Close()
	server := &http.Server{
		Handler: &service{
			hub:    newHub(c.Patience, nodes{objects}.expected),
			access: access{client.AuthorizationV1().SubjectAccessReviews()},
			who:    p.authenticator(),
			page:   page.Handler(), patience: ledger.Patience,
		},
		TLSConfig: &tls.Config{
			GetCertificate: certificates.certificate,
			MinVersion:     tls.VersionTLS13,
			// Whose it is, the authenticator looks at; without one there is nothing to say.
			ClientAuth: tls.RequireAnyClientCert,
			NextProtos: []string{"h2", "http/1.1"},
		},
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(c.Logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(listener, "", "") }()
	c.Logger.Info("collector serves", "address", listener.Addr().String())
	select {
	case err := <-ended:
		return fmt.Errorf("serve the API server: %w", err)
	case <-ctx.Done():
	}
	// Streams end with ctx; requests get a moment.
	last, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	if err := server.Shutdown(last); err != nil {
		return errors.Join(fmt.Errorf("end: %w", err), server.Close())
	}
	return nil
}

func serveHealth(c Config, p *publisher) (interface{ Close() error }, error) {
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second}
	if c.HealthAddress == "0" {
		return server, nil
	}
	l, err := net.Listen("tcp", c.HealthAddress)
	if err != nil {
		return nil, fmt.Errorf("listen for probes: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !p.published.Load() {
			http.Error(w, errNotPublished.Error(), http.StatusServiceUnavailable)
		}
	})
	server.Handler = mux
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			c.Logger.Error("probes are not answered any more", "err", err)
		}
	}()
	return server, nil
}

// nodes knows which nodes there are.
type nodes struct{ objects dynamic.Interface }

// silence is how long an agent may say nothing before it is taken to be gone.
const silence = 40 * time.Second

// expected returns the nodes whose agents should be connected, and what is to be said
// of each that is not.
func (n nodes) expected(ctx context.Context) (map[string]string, error) {
	states := schema.GroupVersionResource{Group: v1alpha1.Group, Version: v1alpha1.Version, Resource: "nodestates"}
	// As the API server's cache has them: that costs it little.
	list, err := n.objects.Resource(states).List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("list NodeStates: %w", err)
	}
	out := make(map[string]string, len(list.Items))
	for i := range list.Items {
		o := &list.Items[i]
		why := "its agent is not connected to the collector, now or yet"
		if s, ok := o.Object["status"].(map[string]any); ok {
			text, _ := s["heartbeatTime"].(string)
			if at, err := time.Parse(time.RFC3339, text); err == nil && time.Since(at) > silence {
				why = "its agent has been silent since " + at.UTC().Format(time.RFC3339)
			}
		}
		out[o.GetName()] = why
	}
	return out, nil
}
