// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/daemon/relay"
)

// coveredCommand and relayCommand are for pods of a sandbox that "sidetrack run" and
// "sidetrack proxy" make: the image is on every node.
func coveredCommand() *cobra.Command {
	timeout, address := 30*time.Second, ""
	cmd := &cobra.Command{
		Use:   "covered",
		Short: "Wait, in a pod of a sandbox, until its traffic is covered",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return untilCovered(cmd.Context(), address, timeout)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait")
	cmd.Flags().StringVar(&address, "address", address, "`host:port` of a Service to try it with (default: the API server's)")
	return cmd
}

func untilCovered(ctx context.Context, address string, timeout time.Duration) error {
	if address == "" {
		var err error
		if address, err = relay.Apiserver(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return relay.Covered(ctx, address)
}

func relayCommand() *cobra.Command {
	listen, address, idle, covered := "127.0.0.1:15080", "", time.Duration(0), time.Duration(0)
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Open connections from a pod of a sandbox on behalf of a user outside of the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if covered > 0 {
				if err := untilCovered(cmd.Context(), address, covered); err != nil {
					return err
				}
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("listen for the port-forwarding: %w", err)
			}
			// Whoever has made the pod waits for this.
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), "relay: serving"); err != nil {
				return err
			}
			r := relay.Relay{Idle: idle}
			return r.Serve(cmd.Context(), l)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", listen, "`address` to listen on; whoever reaches it may connect to whatever the pod may")
	cmd.Flags().DurationVar(&idle, "idle", idle, "end when it has not been used for this long; 0 is never")
	cmd.Flags().DurationVar(&covered, "covered", covered, "wait so long at most until the pod's traffic is covered; 0 is not at all")
	cmd.Flags().StringVar(&address, "covered-address", address, "`host:port` of a Service to try that with; for a pod whose requests are not tagged by themselves, one that is redirected or observed (default: the API server's)")
	return cmd
}
