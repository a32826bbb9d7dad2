// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/mcpserver"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

func (p *program) mcpCommand() *cobra.Command {
	var o mcpserver.HTTPOptions
	var tokenFile string
	var tun tunnelFlags
	cmd := &cobra.Command{
		Use:   "mcp",
		Short: "Serve Sidetrack's tools to a coding agent (Model Context Protocol)",
		Long: `Serve Sidetrack's tools to a coding agent by the Model Context Protocol: over standard input and output,
which is what agents start it with, or over HTTP with --http.

Whoever reaches the tools acts on the cluster as you. Over HTTP only programs on this machine do, and pages
that this machine has not served do not; --http-token-file has them show a token, and may then listen on other addresses.`,
		Example: p.example(`
  # the settings of an agent start it; ready ones are in docs/agents
  %[1]s mcp --context staging -n shop

  # for agents that are told a URL
  %[1]s mcp --http 127.0.0.1:8080`),
		GroupID: "loop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s := mcpserver.New(mcpserver.Options{Version: p.version, Connect: p.connect, AgentImage: tun.image, ServiceAccount: tun.serviceAccount})
			if o.Address == "" {
				if tokenFile != "" || len(o.Origins) > 0 {
					return &task.Failure{Kind: task.Usage, Message: "--http-token-file and --http-origin are for --http", Remedy: "add --http 127.0.0.1:8080, or leave them out"}
				}
				return s.Stdio(cmd.Context(), p.streams.In, p.streams.Out)
			}
			if tokenFile != "" {
				b, err := os.ReadFile(tokenFile)
				if err != nil {
					return fmt.Errorf("read the token: %w", err)
				}
				if o.Token = strings.TrimSpace(string(b)); len(o.Token) < 16 {
					return task.Usagef("the token in %s is shorter than 16 characters: make a random one", tokenFile)
				}
			}
			return s.HTTP(cmd.Context(), o, func(url string) { fmt.Fprintln(p.streams.ErrOut, "serving at "+url) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Address, "http", "", "serve the streamable HTTP transport on this `address` instead of standard input and output")
	flags.StringVar(&tokenFile, "http-token-file", "", "`file` with a token that each HTTP request has to bear")
	flags.StringSliceVar(&o.Origins, "http-origin", nil, "web `origins` that may use the tools, beside those of this machine")
	tun.register(flags)
	return cmd
}
