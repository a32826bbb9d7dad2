// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/runner"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// What "run" gives when it has no command's own exit status, as docker and timeout
// do.
const (
	exitRunTimeout = 124
	exitNotRun     = 125
)

func (p *program) runCommand() *cobra.Command {
	var r runner.Request
	var noCheck bool
	var patch string
	cmd := &cobra.Command{
		Use:   "run --sandbox NAME --image IMAGE -- COMMAND [ARG...]",
		Short: "Run a command in a pod of the sandbox: its requests are tagged by themselves",
		Long: `Run a command, such as a test suite, in a pod of the sandbox. Its HTTP requests get the routing key, and its
other flows follow the sandbox's redirects. What it prints is printed, and its exit status is this program's. The pod is
removed when it has ended and when this is interrupted, and goes with the sandbox in any case.

The command replaces the image's entrypoint; with --args it is given to it. It is run as it is: what Kubernetes would put
in the place of $(NAME) and $$ stays. It has no standard input. It starts when the sandbox is ready and the
pod's traffic is covered, so that no request of it reaches the baseline by mistake. At the end standard error says at
which Services forks answered meanwhile, and what is known to have gone elsewhere: a green in which no fork had a part
is none of the change's.

Exit status: the command's; 124 when it takes too long, 125 when it could not be run or followed, 2 for wrong usage.`,
		Example: p.example(`
  %[1]s run --sandbox pr-42 --image registry/tests:pr-42 -- npm test
  %[1]s run --sandbox pr-42 --image curlimages/curl --timeout 1m -- curl -fsS http://frontend.shop/cart`),
		GroupID: "loop",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case r.Sandbox == "":
				return usage(cmd, errors.New("--sandbox is missing: whose traffic the command's is to be"))
			case r.Image == "":
				return usage(cmd, errors.New("--image is missing: what the command runs in"))
			}
			r.Sandbox, r.Command, r.Unchecked = sandboxName(r.Sandbox), args, noCheck
			if patch != "" {
				text, err := readFile(patch, p.streams.In)
				if err != nil {
					return usage(cmd, err)
				}
				r.Patch = text
			}
			c, err := p.connect()
			if err != nil {
				return p.ranWith(runner.Result{}, err)
			}
			if r.AgentImage == "" {
				if r.AgentImage, err = c.AgentImage(cmd.Context(), p.version); err != nil {
					return p.ranWith(runner.Result{}, err)
				}
			}
			res, err := p.run(cmd.Context(), c, r)
			return p.ranWith(res, err)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.StringVar(&r.Sandbox, "sandbox", "", "`name` of the sandbox")
	flags.StringVar(&r.Image, "image", "", "`image` to run the command in")
	flags.BoolVar(&r.AsArgs, "args", false, "give what follows -- to the image's entrypoint as arguments")
	flags.StringArrayVar(&r.Env, "env", nil, "`NAME=VALUE` in the command's environment; may be repeated")
	flags.DurationVar(&r.Timeout, "timeout", 0, "how long the command may take; an hour when it is left out")
	flags.BoolVar(&r.Keep, "keep", false, "leave the pod when it has ended")
	flags.StringVar(&r.WorkingDir, "workdir", "", "`directory` to run the command in")
	flags.StringVar(&r.ServiceAccount, "service-account", "", "`name` of the pod's ServiceAccount")
	flags.StringVar(&r.PullPolicy, "image-pull-policy", "", "Always, IfNotPresent or Never")
	flags.StringVar(&patch, "patch", "", "`file` with a strategic merge patch of the pod, for all else; the command's container is called run; - is standard input")
	flags.BoolVar(&r.Untagged, "no-inject", false, "do not tag the command's HTTP requests; its other flows are the sandbox's all the same")
	flags.BoolVar(&noCheck, "no-coverage-check", false, "start the command without waiting until the pod's traffic is covered")
	flags.StringVar(&r.AgentImage, "agent-image", "", "Sidetrack's own `image`, which looks whether it is (default: $SIDETRACK_AGENT_IMAGE, else the agents')")
	completeFlag(cmd, "sandbox", p.complete(sandboxNames))
	completeFlag(cmd, "image-pull-policy", oneOf("Always", "IfNotPresent", "Never"))
	return cmd
}

// run runs the command, and says what is known of whether forks answered it.
func (p *program) run(ctx context.Context, c *cluster.Cluster, r runner.Request) (runner.Result, error) {
	progress := p.progress()
	sb, err := proof.ToRun(ctx, c, r.Namespace, r.Sandbox, task.ProgressFunc(func(e task.Event) {
		if !e.OK {
			progress.Report(e)
		}
	}))
	if err != nil {
		return runner.Result{}, err
	}
	res, err := runner.Run(ctx, c, r, func(line string) error {
		_, err := io.WriteString(p.streams.Out, line)
		return err
	}, progress)
	if err != nil {
		return res, err
	}
	v, err := proof.Account(ctx, c, sb, proof.Ran{Pod: res.Pod, Began: res.Began})
	if err != nil {
		// What the command has come to is known all the same.
		v = proof.Verdict{Doubts: []string{"it is not known whether a fork answered: " + err.Error()}}
	}
	writeAccount(p.streams.ErrOut, &v, fmt.Sprintf("%s trace %s -n %s --since %dm", p.name, sb.Name, sb.Namespace, res.Took/time.Minute+2))
	return res, nil
}

// writeAccount says at which Services forks answered while a command ran, and what is
// not known. Nothing says that it is the command whom they answered.
func writeAccount(out io.Writer, v *proof.Verdict, next string) {
	if len(v.Reached) > 0 {
		fmt.Fprintf(out, "forks answered while it ran, at: %s\n", strings.Join(v.Reached, ", "))
	}
	if len(v.Doubts) == 0 {
		return
	}
	fmt.Fprintln(out, "NOT VERIFIED that forks answered the command wherever they should:")
	for _, why := range v.Doubts {
		fmt.Fprintf(out, "  %s\n", why)
	}
	fmt.Fprintf(out, "next: %s\n", next)
}

// ranWith gives the command's exit status, or what stands for it.
func (p *program) ranWith(res runner.Result, err error) error {
	switch {
	case err == nil && res.ExitCode == 0:
		return nil
	case err == nil:
		if res.Reason != "" {
			fmt.Fprintf(p.streams.ErrOut, "%s: the command was ended: %s\n", p.name, res.Reason)
		}
		return exitStatus(res.ExitCode)
	case task.KindOf(err) == task.Usage || p.unread():
		return err
	}
	complain(p.streams.ErrOut, p.name, err)
	switch {
	case errors.Is(err, context.Canceled):
		return exitStatus(exitInterrupted)
	case errors.Is(err, runner.ErrTimeout):
		return exitStatus(exitRunTimeout)
	}
	return exitStatus(exitNotRun)
}

// readFile reads a file, or standard input where its name is -.
func readFile(name string, stdin io.Reader) (string, error) {
	if name == "-" {
		text, err := io.ReadAll(stdin)
		if err != nil {
			return "", fmt.Errorf("read standard input: %w", err)
		}
		return string(text), nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("read the file: %w", err)
	}
	return string(text), nil
}
