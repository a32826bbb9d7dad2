// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/metrics"
)

// While one agent takes over from another, two of them share the host's network
// and its files. A readiness probe is run inside one container and must be
// answered by the agent of that container. What tells the two apart is the mount
// namespace, so its number is in the name of an abstract socket.
func ownReadySocket() (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/mnt", &st); err != nil {
		return "", fmt.Errorf("find the own mount namespace: %w", err)
	}
	return fmt.Sprintf("@sidetrackd-ready-%d", st.Ino), nil
}

func readyCommand() *cobra.Command {
	socket, timeout := "", 3*time.Second
	cmd := &cobra.Command{
		Use:   "ready",
		Short: "Say whether this container's agent is ready, by the exit status: for a readiness probe",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if socket == "" {
				var err error
				if socket, err = ownReadySocket(); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			said, err := askReady(ctx, socket)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), said)
			return err
		},
	}
	cmd.Flags().StringVar(&socket, "socket", socket, "`path` of the agent's --ready-socket (default: that of the agent in this container)")
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long the agent may take to answer")
	return cmd
}

// askReady returns what the agent at a socket says, which is an error when it is
// not ready.
func askReady(ctx context.Context, socket string) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, fmt.Errorf("no agent answers: %w", err)
			}
			// Whoever may make sockets in the host's network could have taken the name.
			if err := handover.CheckPeer(c.(*net.UnixConn)); err != nil {
				return nil, errors.Join(err, c.Close())
			}
			return c, nil
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/readyz", nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return "", err
	}
	said := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("not ready: %s", said)
	}
	return said, nil
}

// serveReady answers "sidetrackd ready" until what it returns is closed. Without
// a socket it answers nobody.
func (h *handoverFlags) serveReady(m *metrics.Metrics, kubernetes bool, log *slog.Logger) (io.Closer, error) {
	socket := h.ready
	switch {
	case socket == "" && !kubernetes:
		return io.NopCloser(nil), nil
	case socket == "":
		var err error
		if socket, err = ownReadySocket(); err != nil {
			return nil, err
		}
	}
	var l net.Listener
	var err error
	if socket[0] == '@' {
		l, err = net.Listen("unix", socket)
	} else {
		var own *handover.Listener
		if own, err = handover.Listen("unix", socket); err == nil {
			l = own.Plain()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("--ready-socket: %w", err)
	}
	server := m.Server()
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("readiness probes are not answered any more", "err", err)
		}
	}()
	return server, nil
}
