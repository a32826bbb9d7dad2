// SPDX-License-Identifier: Apache-2.0

package health

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
)

// keyNames looks whether the agents look for routing keys where this program puts
// them: its own names are fixed, theirs are arguments.
func (d *doctor) keyNames(ctx context.Context) {
	const name = "key names"
	agent, err := d.c.Agent(ctx)
	switch {
	case err != nil:
		d.unseen(name, "daemonsets of all namespaces", err)
		return
	case agent == nil:
		return // Whether there are agents is said already.
	}
	ours := exchange.KeyNames()
	members, header, err := keyArguments(slices.Concat(agent.Command, agent.Args))
	if err != nil {
		d.add(name, Unknown, "look at them yourself", "the agents' arguments cannot be read: %v", err)
		return
	}
	const values = "routing.baggageMembers and routing.keyHeader of the chart"
	theirs := "the agents look for routing keys in baggage members " + strings.Join(members, ", ") + " and header " + header
	switch {
	case !slices.Contains(members, ours[0]):
		d.add(name, Missing, "have "+ours[0]+" among the members: "+values,
			"%s: diff and compare_responses, which send it in the member %s, compare the baseline with itself, and sandbox key --header prints a header that nobody reads", theirs, ours[0])
	case !same(members, ours) || !strings.EqualFold(header, exchange.KeyHeader):
		d.add(name, Optional, "leave the other names to other programs, or set "+values,
			"%s, this program in %s and %s: it does not see a key elsewhere in a request that it sends", theirs, strings.Join(ours, ", "), strings.ToLower(exchange.KeyHeader))
	default:
		d.add(name, OK, "", "the agents look for routing keys where this program puts them")
	}
}

func same(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// keyArguments returns the names that an agent with these arguments goes by.
func keyArguments(args []string) (members []string, header string, err error) {
	flags := pflag.NewFlagSet("agent", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	flags.StringSliceVar(&members, "baggage-member", exchange.KeyNames(), "")
	flags.StringVar(&header, "key-header", strings.ToLower(exchange.KeyHeader), "")
	return members, header, flags.Parse(args)
}
