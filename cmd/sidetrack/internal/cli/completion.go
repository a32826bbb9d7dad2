// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
)

// completion completes a word.
type completion = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// patience is how long somebody who has pressed the tabulator waits.
const patience = 3 * time.Second

// complete makes a completion of a function that asks the cluster. What it
// cannot say it leaves out: there is nobody to tell an error.
func (p *program) complete(words func(context.Context, *cluster.Cluster) []string) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), patience)
		defer cancel()
		p.until = ctx
		c, err := p.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all := slices.DeleteFunc(words(ctx, c), func(s string) bool { return !strings.HasPrefix(s, word) || slices.Contains(args, s) })
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

func sandboxNames(ctx context.Context, c *cluster.Cluster) []string {
	all, err := sandbox.List(ctx, c, c.Namespace, "")
	if err != nil {
		return nil
	}
	var names []string
	for i := range all {
		names = append(names, all[i].Name)
	}
	return names
}

// shortKinds are how kinds are written in front of a name.
var shortKinds = map[string]string{"Deployment": "deploy", "StatefulSet": "sts", "DaemonSet": "ds", "ReplicaSet": "rs", "CronJob": "cronjob"}

func workloadNames(ctx context.Context, c *cluster.Cluster) []string {
	all, err := sandbox.Workloads(ctx, c, c.Namespace)
	if err != nil {
		return nil
	}
	var names []string
	for _, w := range all {
		names = append(names, shortKinds[w.Ref.Kind]+"/"+w.Ref.Name)
	}
	return names
}

func serviceNames(ctx context.Context, c *cluster.Cluster) []string {
	var list corev1.ServiceList
	if err := c.Objects.List(ctx, &list, client.InNamespace(c.Namespace)); err != nil {
		return nil
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names
}

// firstOnly completes the first argument and no other.
func firstOnly(f completion) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, word)
	}
}

// completeFlag registers a completion. A flag that is not there is a mistake of
// this program, which its tests find.
func completeFlag(cmd *cobra.Command, flag string, f completion) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

func oneOf(words ...string) completion {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}

// completeKubeFlags completes kubectl's flags.
func (p *program) completeKubeFlags(root *cobra.Command) {
	completeFlag(root, "namespace", p.complete(func(ctx context.Context, c *cluster.Cluster) []string {
		var list corev1.NamespaceList
		if err := c.Objects.List(ctx, &list); err != nil {
			return nil
		}
		var names []string
		for i := range list.Items {
			names = append(names, list.Items[i].Name)
		}
		return names
	}))
	fromConfig := func(names func() []string) completion {
		return func(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return slices.DeleteFunc(names(), func(s string) bool { return !strings.HasPrefix(s, word) }), cobra.ShellCompDirectiveNoFileComp
		}
	}
	completeFlag(root, "context", fromConfig(func() (names []string) {
		cfg, err := p.kube.ToRawKubeConfigLoader().RawConfig()
		if err != nil {
			return nil
		}
		for name := range cfg.Contexts {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}))
	completeFlag(root, "cluster", fromConfig(func() (names []string) {
		cfg, err := p.kube.ToRawKubeConfigLoader().RawConfig()
		if err != nil {
			return nil
		}
		for name := range cfg.Clusters {
			names = append(names, name)
		}
		slices.Sort(names)
		return names
	}))
}
