// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proxy"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/tunnel"
)

// tunnelFlags say how to get into the cluster.
type tunnelFlags struct{ image, serviceAccount string }

func (f *tunnelFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.image, "agent-image", "", "Sidetrack's own `image`, for the pod that connections come from (default: $SIDETRACK_AGENT_IMAGE, else the agents')")
	flags.StringVar(&f.serviceAccount, "service-account", "", "`name` of that pod's ServiceAccount; no token of it is mounted")
}

// open waits for the sandbox and opens a tunnel.
func (f *tunnelFlags) open(ctx context.Context, p *program, c *cluster.Cluster, name string, tagged bool) (*v1alpha1.Sandbox, *tunnel.Tunnel, error) {
	sb, err := sandbox.Wait(ctx, c, "", name, sandbox.DefaultWait(), unlessDone(p.progress()))
	if err != nil {
		return nil, nil, err
	}
	image := f.image
	if image == "" {
		if image, err = c.AgentImage(ctx, p.version); err != nil {
			return nil, nil, err
		}
	}
	t, err := tunnel.Open(ctx, c, tunnel.Options{Sandbox: sb, Tagged: tagged, Image: image, ServiceAccount: f.serviceAccount}, p.progress())
	return sb, t, err
}

// unlessDone leaves out what needs no waiting.
func unlessDone(to task.Progress) task.Progress {
	return task.ProgressFunc(func(e task.Event) {
		if !e.OK {
			to.Report(e)
		}
	})
}

func (p *program) proxyCommand() *cobra.Command {
	var f tunnelFlags
	name, listen := "", "127.0.0.1:0"
	cmd := &cobra.Command{
		Use:   "proxy --sandbox NAME [-- COMMAND [ARG...]]",
		Short: "A local HTTP and SOCKS5 proxy into the cluster that tags what goes through it",
		Long: `Listen on this machine as an HTTP and SOCKS5 proxy, on one port, whose connections come from a pod of the sandbox.
Names resolve as they do there. HTTP requests get the sandbox's routing key, also those in a tunnel that is not encrypted;
all other connections follow the sandbox's redirects. Nothing is needed but access to the API server.

With a command, run it with http_proxy, https_proxy and all_proxy set, and give its exit status. Without one, print these
variables and go on until interrupted. The pod is removed at the end. When it is lost, as it is when the sandbox is deleted
or its ttl is over, this fails, and interrupts the command.`,
		Example: p.example(`
  %[1]s proxy --sandbox pr-42 -- curl -s http://frontend.shop/cart

  %[1]s proxy --sandbox pr-42 --listen 127.0.0.1:8888
  http_proxy=http://127.0.0.1:8888 curl http://frontend.shop/cart
  curl --proxy socks5h://127.0.0.1:8888 http://frontend.shop/cart`),
		GroupID: "loop",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				return usage(cmd, errors.New("--sandbox is missing: whose key requests are to get"))
			}
			return p.proxy(cmd.Context(), &f, sandboxName(name), listen, args)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&name, "sandbox", "", "`name` of the sandbox")
	cmd.Flags().StringVar(&listen, "listen", listen, "`address` to listen on; whoever reaches it may use it; port 0 is any that is free")
	f.register(cmd.Flags())
	completeFlag(cmd, "sandbox", p.complete(sandboxNames))
	return cmd
}

func (p *program) proxy(ctx context.Context, f *tunnelFlags, name, listen string, command []string) (err error) {
	c, err := p.connect()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return &task.Failure{Message: fmt.Sprintf("cannot listen: %v", err), Remedy: "choose another address with --listen", Err: err}
	}
	defer l.Close()
	sb, t, err := f.open(ctx, p, c, name, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	names, err := exchange.NamesOf(sb)
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- (&proxy.Proxy{Dialer: t, Key: sb.Status.RoutingKey, Names: names}).Serve(serving, l)
		stop()
	}()
	lost := make(chan error, 1)
	go func() {
		lost <- t.Lost(serving)
		stop()
	}()
	defer func() {
		stop()
		// How a command ends that nothing gets through for any more says nothing.
		if e := <-lost; e != nil {
			err = e
		}
		err = errors.Join(err, <-served)
	}()
	env := proxyEnv(l.Addr().String())
	if len(command) > 0 {
		return runLocal(serving, p, command, env)
	}
	fmt.Fprintf(p.streams.ErrOut, "proxy of sandbox %s on %s, from pod %s; interrupt it to end\n", name, l.Addr(), t.Pod())
	for _, e := range env[:3] {
		if _, err := fmt.Fprintf(p.streams.Out, "export %s\n", e); err != nil {
			return err
		}
	}
	<-serving.Done()
	return nil
}

// proxyEnv are the variables that have programs use a proxy.
func proxyEnv(address string) []string {
	env := []string{"http_proxy=http://" + address, "https_proxy=http://" + address, "all_proxy=socks5h://" + address, "no_proxy=localhost,127.0.0.1,::1"}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		env = append(env, strings.ToUpper(name)+"="+value)
	}
	return env
}

// runLocal runs a command on this machine and gives its exit status.
func runLocal(ctx context.Context, p *program, command, env []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.streams.In, p.stdout, p.streams.ErrOut
	// It gets the terminal's interrupt by itself; this is for when nobody else ends it.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exitStatus(exit.ExitCode())
	case errors.As(err, &exit):
		return exitStatus(exitInterrupted)
	case err != nil:
		return &task.Failure{Kind: task.Usage, Message: fmt.Sprintf("cannot run %s: %v", command[0], err), Err: err}
	}
	return nil
}
