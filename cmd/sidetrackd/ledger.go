// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/daemon/handover"
	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
)

// ledgerFlags say how much of what was routed is kept, and where it can be read.
type ledgerFlags struct {
	socket string
	answer bool
	// flowEnds: see agent.Config.
	flowEnds bool
	config   ledger.Config
}

func (f *ledgerFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.socket, "ledger-socket", f.socket, "`path` of the socket that `sidetrackd ledger` asks; root alone can reach it (default: none)")
	flags.BoolVar(&f.answer, "ledger-answer", f.answer, "answer the ledger's collector, by way of the API server, with --kubernetes")
	flags.BoolVar(&f.flowEnds, "flow-ends", true, "record what TCP connections of sandboxes' pods have carried; while such a pod is on this host, the kernel does 1 to 2 µs more for each TCP socket of the host that ends")
	flags.Int64Var(&f.config.MaxBytes, "ledger-bytes", 64<<20, "most bytes of all records of tagged traffic together; the oldest of the largest sandbox give way")
	flags.Int64Var(&f.config.MaxSandboxBytes, "ledger-sandbox-bytes", 8<<20, "most bytes of records of one sandbox; the oldest give way")
}

func (f *ledgerFlags) validate(kubernetes bool) error {
	if f.answer && !kubernetes {
		return errors.New("--ledger-answer goes with --kubernetes: add it or leave it out")
	}
	if f.config.MaxBytes < 1<<20 || f.config.MaxSandboxBytes < 64<<10 || f.config.MaxSandboxBytes > f.config.MaxBytes {
		return fmt.Errorf("--ledger-bytes %d, --ledger-sandbox-bytes %d: want at least 1 MiB and 64 KiB, and not more for a sandbox than for all", f.config.MaxBytes, f.config.MaxSandboxBytes)
	}
	return nil
}

// serve lets root read the ledger at a socket until what it returns is closed.
// Without a socket it answers nobody.
func (f *ledgerFlags) serve(l *ledger.Ledger, log *slog.Logger) (io.Closer, error) {
	if f.socket == "" {
		return io.NopCloser(nil), nil
	}
	socket, err := handover.Listen("unix", f.socket)
	if err != nil {
		return nil, fmt.Errorf("--ledger-socket: %w", err)
	}
	server := &http.Server{Handler: ledger.Handler(l, ledger.Patience), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := server.Serve(socket.Plain()); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the ledger cannot be read at its socket any more", "err", err)
		}
	}()
	return server, nil
}

func ledgerCommand() *cobra.Command {
	socket, since, group := "", "", false
	var want ledgerv1alpha1.Options
	cmd := &cobra.Command{
		Use:   "ledger --socket PATH NAMESPACE/NAME",
		Short: "Print where this node's agent has sent a sandbox's traffic, and why: a RecordList, in JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			namespace, name, ok := strings.Cut(args[0], "/")
			switch {
			case !ok || namespace == "" || name == "" || strings.Contains(name, "/"):
				return fmt.Errorf("%q is not NAMESPACE/NAME", args[0])
			case socket == "":
				return errors.New("--socket is needed: the agent's --ledger-socket")
			}
			q := want.Values()
			if since != "" {
				q.Set("since", since)
			}
			o, err := ledgerv1alpha1.ParseOptions(q, time.Now())
			if err != nil {
				return fmt.Errorf("--%w", err)
			}
			resource := "sandboxes"
			if group {
				resource = "routegroups"
			}
			return readLedger(cmd.Context(), cmd.OutOrStdout(), socket, o.Path(resource, namespace, name))
		},
	}
	cmd.Flags().StringVar(&socket, "socket", socket, "`path` of the agent's --ledger-socket")
	cmd.Flags().BoolVar(&group, "group", group, "NAME is a RouteGroup's and not a Sandbox's")
	cmd.Flags().BoolVarP(&want.Follow, "follow", "f", want.Follow, "go on with what comes, a RecordList a line")
	cmd.Flags().StringVar(&since, "since", since, "leave out what is older than a `time` (RFC 3339) or a duration before now, such as 10m")
	cmd.Flags().StringVar(&want.Trace, "trace", want.Trace, "leave out what is not of the trace with this `id`")
	cmd.Flags().IntVar(&want.Limit, "limit", ledgerv1alpha1.DefaultLimit, "most records, the newest")
	return cmd
}

func readLedger(ctx context.Context, out io.Writer, socket, path string) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return nil, fmt.Errorf("no agent answers: %w", err)
			}
			return c, nil
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var s metav1.Status
		if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&s); err != nil {
			return fmt.Errorf("the agent answers %s", resp.Status)
		}
		return errors.New(s.Message)
	}
	if _, err := io.Copy(out, resp.Body); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}
