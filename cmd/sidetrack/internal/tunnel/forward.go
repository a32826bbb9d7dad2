// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
)

// forward is a connection to the kubelet, through the API server, that streams to
// the pod's port are opened on. client-go's own forwarder listens on this machine,
// for everybody on it; this one does not.
type forward struct {
	conn httpstream.Connection
	next atomic.Int64
}

// openForward connects as kubectl does: by WebSocket, and by SPDY where something
// on the way does not know that.
func openForward(ctx context.Context, c *cluster.Cluster, p *corev1.Pod) (*forward, error) {
	url := c.Core.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(c.Config)
	if err != nil {
		return nil, fmt.Errorf("prepare the port-forwarding: %w", err)
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	dialer, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, c.Config)
	if err != nil {
		return nil, fmt.Errorf("prepare the port-forwarding: %w", err)
	}
	type dialled struct {
		conn httpstream.Connection
		err  error
	}
	done := make(chan dialled, 1)
	go func() {
		conn, _, err := portforward.NewFallbackDialerForStreaming(dialer, old, func(err error) bool {
			return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
		}).Dial(portforward.PortForwardProtocolV1Name)
		done <- dialled{conn, err}
	}()
	select {
	case d := <-done:
		if d.err != nil {
			return nil, cluster.Explain(d.err, "forward a port to pod "+p.Name)
		}
		return &forward{conn: d.conn}, nil
	case <-ctx.Done():
		go func() {
			if d := <-done; d.err == nil {
				d.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func (f *forward) close() { f.conn.Close() }

func (f *forward) isClosed() bool {
	select {
	case <-f.conn.CloseChan():
		return true
	default:
		return false
	}
}

// open opens a connection to the pod's port: a stream of data, and one on which the
// kubelet says what is wrong.
func (f *forward) open() (net.Conn, error) {
	headers := http.Header{}
	headers.Set(corev1.PortHeader, strconv.Itoa(port))
	headers.Set(corev1.PortForwardRequestIDHeader, strconv.FormatInt(f.next.Add(1), 10))
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	trouble, err := f.conn.CreateStream(headers)
	if err != nil {
		return nil, fmt.Errorf("open a stream to the pod: %w", err)
	}
	// Nothing is sent on it.
	trouble.Close()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := f.conn.CreateStream(headers)
	if err != nil {
		f.conn.RemoveStreams(trouble)
		return nil, fmt.Errorf("open a stream to the pod: %w", err)
	}
	s := &stream{Stream: data, said: make(chan struct{})}
	go func() {
		defer close(s.said)
		text, err := io.ReadAll(io.LimitReader(trouble, 4096))
		if err == nil && len(text) > 0 {
			s.trouble = fmt.Errorf("the kubelet says: %s", text)
			_ = data.Reset()
		}
		f.conn.RemoveStreams(trouble, data)
	}()
	return s, nil
}

// stream is a connection to the pod's port. It has no deadlines.
type stream struct {
	httpstream.Stream
	said    chan struct{}
	trouble error
}

// Read says what the kubelet has said where there is nothing more to read because
// of that.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if err != nil && n == 0 {
		select {
		case <-s.said:
			if s.trouble != nil {
				return 0, s.trouble
			}
		default:
		}
		// The library has an error of its own for a stream that was reset.
		if !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read from the pod: %w", err)
		}
	}
	return n, err
}

// CloseWrite says that nothing more will be sent.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions.
func (s *stream) Close() error { return s.Reset() }

type streamAddr struct{}

func (streamAddr) Network() string { return "tcp" }
func (streamAddr) String() string  { return "port-forward" }

func (s *stream) LocalAddr() net.Addr  { return streamAddr{} }
func (s *stream) RemoteAddr() net.Addr { return streamAddr{} }

// Deadlines are accepted and do nothing: net/http asks for them only to hurry.
func (s *stream) SetDeadline(time.Time) error      { return nil }
func (s *stream) SetReadDeadline(time.Time) error  { return nil }
func (s *stream) SetWriteDeadline(time.Time) error { return nil }
