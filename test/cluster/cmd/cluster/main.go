// SPDX-License-Identifier: Apache-2.0

// Cluster starts and stops a real Kubernetes with two nodes on this machine, for
// whoever wants to try something by hand.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/sidetrack-dev/sidetrack/test/cluster"
)

const usage = `usage:
  cluster programs                 build what is missing, print the programs' folder
  cluster up [-proxy nftables]     start a cluster, print its kubeconfig's path
  cluster down                     take it away, whoever has started it
  cluster sweep                    take away what killed tests have left
  cluster kubeconfig               print the path of the kubeconfig
  cluster kubectl ARGS…            run kubectl as administrator
  cluster load ARCHIVE…            give images (docker-archive files) to both nodes
  cluster node node-1|node-2 CMD…  run a command with a node's files and network`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command; %s", usage)
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "programs":
		dir, err := cluster.Programs(ctx)
		if err == nil {
			fmt.Println(dir)
		}
		return err
	case "up":
		return up(ctx, args)
	case "down":
		return cluster.Down()
	case "sweep":
		removed, err := cluster.Sweep()
		if removed {
			fmt.Println("removed", cluster.Dir())
		}
		return err
	}
	c, err := cluster.Open()
	if err != nil {
		return err
	}
	switch verb {
	case "kubeconfig":
		file, err := c.Kubeconfig()
		if err == nil {
			fmt.Println(file)
		}
		return err
	case "kubectl":
		cmd, err := c.KubectlCommand(ctx, args...)
		if err != nil {
			return err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	case "load":
		return c.LoadImages(ctx, args...)
	case "node":
		if len(args) < 2 {
			return fmt.Errorf("node needs a node and a command; %s", usage)
		}
		i := slices.IndexFunc(c.Nodes, func(n *cluster.Node) bool { return n.Name == args[0] })
		if i < 0 {
			return fmt.Errorf("there is no node %s", args[0])
		}
		out, err := c.Nodes[i].Run(ctx, args[1], args[2:]...)
		fmt.Print(out)
		return err
	}
	return fmt.Errorf("no such command: %q; %s", verb, usage)
}

func up(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("up", flag.ContinueOnError)
	proxy := f.String("proxy", "nftables", "kube-proxy's `mode`: nftables, iptables, or mixed: one on each node")
	if err := f.Parse(args); err != nil {
		return err
	}
	began := time.Now()
	c, err := cluster.Up(ctx, cluster.Options{ProxyMode: *proxy})
	if err != nil {
		return err
	}
	file, err := c.Kubeconfig()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "cluster: two nodes are ready after %.0f s\n", time.Since(began).Seconds())
	fmt.Println(file)
	return nil
}
