// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/cluster"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/compare"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/exchange"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/proof"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/sandbox"
	"github.com/sidetrack-dev/sidetrack/cmd/sidetrack/internal/task"
)

// requestFlags are those of one HTTP request, as curl has them.
type requestFlags struct {
	method, body string
	headers      []string
}

func (f *requestFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.method, "request", "X", "", "`method` (default: GET, or POST with --data)")
	cmd.Flags().StringArrayVarP(&f.headers, "header", "H", nil, "`header`, NAME: VALUE; may be repeated")
	cmd.Flags().StringVarP(&f.body, "data", "d", "", "`body`; @FILE reads it from a file, @- from standard input")
}

// header reads the headers.
func (f *requestFlags) header() (http.Header, error) {
	all := http.Header{}
	for _, h := range f.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return nil, task.Usagef("header %q is not NAME: VALUE", h)
		}
		all.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return all, nil
}

func (f *requestFlags) request(p *program, url string) (exchange.Request, error) {
	r := exchange.Request{Method: strings.ToUpper(f.method), URL: url}
	var err error
	if r.Header, err = f.header(); err != nil {
		return r, err
	}
	if f.body != "" {
		body := f.body
		if file, ok := strings.CutPrefix(body, "@"); ok {
			if body, err = readFile(file, p.streams.In); err != nil {
				return r, err
			}
		}
		r.Body = []byte(body)
		if r.Method == "" {
			r.Method = http.MethodPost
		}
	}
	return r, nil
}

func (p *program) diffCommand() *cobra.Command {
	var f requestFlags
	var tun tunnelFlags
	output := resultOutput()
	var name, file string
	o := compare.Options{Samples: compare.DefaultSamples}
	cmd := &cobra.Command{
		Use:   "diff --sandbox NAME URL | -f FILE",
		Short: "Send a request to the baseline and to the sandbox, and say in what the answers differ",
		Long: `Send one request, or those of a file, to the baseline and to the sandbox, from a pod in the cluster, and compare
the answers: status, headers, and the body, value by value where it is JSON. What differs between one answer of the
baseline and the next is noise, and left out; so each request is sent several times, until nothing is different or there
are --samples answers of the baseline that agree. Requests must bear being repeated. Names and addresses of pods count
as their workloads'.

The file is a list in YAML or JSON. Its elements are URL, METHOD URL, or objects with url, method, headers and body.
Headers given with -H are sent with each of them that does not have one of that name.

Redirects are not followed: they are compared. So is the whole body; value by value or line by line up to 1 MiB, as one
beyond that. gzip and deflate are undone before, other encodings (br, zstd) are compared as they come.

That a fork answered the sandbox's requests is verified by the ledger: where the key is lost on the way, the baseline
answers both, and nothing differs.

Exit status: 0 when nothing differs and forks have answered, 4 when something differs, 5 when nothing does and it is not
verified that forks have answered.`,
		Example: p.example(`
  %[1]s diff --sandbox pr-42 http://frontend.shop/cart
  %[1]s diff --sandbox pr-42 -d '{"item": 7}' -H 'Content-Type: application/json' http://cart.shop/price --ignore '$.id'
  %[1]s diff --sandbox pr-42 -f requests.yaml`),
		GroupID: "loop",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(cmd); err != nil {
				return err
			}
			switch {
			case name == "":
				return usage(cmd, errors.New("--sandbox is missing: what to compare the baseline with"))
			case (file == "") == (len(args) == 0):
				return usage(cmd, errors.New("give one URL, or a file of requests with -f"))
			case file != "" && (f.method != "" || f.body != ""):
				return usage(cmd, errors.New("-X and -d are for one URL: each request of the file has a method and a body of its own"))
			case o.Samples < 2:
				return usage(cmd, errors.New("--samples is 2 at least: one answer shows no noise"))
			case o.Timeout <= 0:
				return usage(cmd, fmt.Errorf("--timeout %s is over before it begins", o.Timeout))
			}
			requests, err := p.requests(&f, file, args)
			if err != nil {
				return err
			}
			return p.diff(cmd.Context(), &tun, sandboxName(name), requests, o, output)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "sandbox", "", "`name` of the sandbox")
	f.register(cmd)
	flags.StringVarP(&file, "filename", "f", "", "`file` of requests; - is standard input")
	flags.IntVar(&o.Samples, "samples", o.Samples, "how many answers of the baseline have to agree before a difference is believed")
	flags.DurationVar(&o.Timeout, "timeout", exchange.DefaultTimeout, "how long each answer may take, to its end")
	flags.StringArrayVar(&o.Ignore, "ignore", nil, "`place` that does not count, as it is printed, such as '$[*].id' or 'header Server'; may be repeated")
	tun.register(flags)
	output.register(cmd)
	completeFlag(cmd, "sandbox", p.complete(sandboxNames))
	return cmd
}

// requests are those that are asked for. What nothing can come of is found before a pod
// is made for them.
func (p *program) requests(f *requestFlags, file string, args []string) ([]exchange.Request, error) {
	if file == "" {
		r, err := f.request(p, args[0])
		if err == nil {
			err = r.Check()
		}
		return []exchange.Request{r}, err
	}
	shared, err := f.header()
	if err != nil {
		return nil, err
	}
	text, err := readFile(file, p.streams.In)
	if err != nil {
		return nil, err
	}
	all, err := compare.ParseRequests(text)
	if err != nil {
		return nil, err
	}
	for i := range all {
		r := &all[i]
		if err := r.Check(); err != nil {
			return nil, task.Usagef("request %d: %v", i+1, err)
		}
		own := r.Header
		if r.Header = shared.Clone(); own != nil {
			maps.Copy(r.Header, own)
		}
	}
	return all, nil
}

func (p *program) diff(ctx context.Context, tun *tunnelFlags, name string, requests []exchange.Request, o compare.Options, output *output) (err error) {
	c, err := p.connect()
	if err != nil {
		return err
	}
	// Not one of the sandbox's pods: the same way for both, and the key alone tells
	// them apart.
	sb, t, err := tun.open(ctx, p, c, name, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if o.Names, err = exchange.NamesOf(sb); err != nil {
		return err
	}
	if o.Canonical, err = compare.NamesOfPods(ctx, c, sb.Namespace); err != nil {
		return err
	}
	if sb, err = proof.Covered(ctx, c, sb, p.progress()); err != nil {
		return err
	}
	send := compare.Through(t.DialContext, o.Names, sb.Status.RoutingKey)
	var results []compare.Result
	for _, r := range requests {
		res, err := compare.Compare(ctx, send, r, o)
		if err == nil {
			err = compare.Verify(ctx, c, sb, &res)
		}
		if err == nil && res.BaselineError != "" && res.SandboxError != "" {
			err = sandbox.Gone(ctx, c, sb)
		}
		if err != nil {
			return cluster.Explain(err, "compare "+r.URL)
		}
		results = append(results, res)
		if output.printer == nil {
			writeDiff(p.streams.Out, &res)
		}
	}
	if done, err := output.result(p.streams.Out, results); done && err != nil {
		return err
	}
	return outcome(results, sb)
}

// outcome is what all comparisons come to: nil only where nothing differs and forks
// have answered each request.
func outcome(results []compare.Result, sb *v1alpha1.Sandbox) error {
	different, failed, unverified, late := 0, 0, 0, false
	trace := ""
	for i := range results {
		r := &results[i]
		switch {
		case r.BaselineError != "" && r.SandboxError != "":
			failed++
			late = late || r.TimedOut
		case len(r.Differences) > 0:
			different++
		case !r.Verified:
			unverified++
			trace = cmp.Or(trace, r.TraceID)
		}
	}
	switch {
	case failed > 0 && late:
		return &task.Failure{Message: fmt.Sprintf("%d of %d requests got no whole answer from either side", failed, len(results)),
			Remedy: "give them more with --timeout; an answer that never ends, such as server-sent events, cannot be compared"}
	case failed > 0:
		return &task.Failure{Message: fmt.Sprintf("%d of %d requests were answered by nobody", failed, len(results)),
			Remedy: "correct the URL: names are those of the cluster, such as http://SERVICE." + sb.Namespace}
	case different > 0:
		return exitStatus(exitDifferent)
	case unverified > 0:
		f := &task.Failure{Kind: task.Unverified,
			Message: fmt.Sprintf("no difference found, but it is not verified that a fork answered %d of %d requests", unverified, len(results)),
			Remedy:  fmt.Sprintf("see sidetrack explain %s -n %s", sb.Name, sb.Namespace)}
		if trace != "" {
			f.Remedy += " --trace " + trace
		}
		return f
	}
	return nil
}

func writeDiff(out io.Writer, r *compare.Result) {
	switch {
	case r.BaselineError != "" && r.SandboxError != "":
		fmt.Fprintf(out, "%s: no answer: %s\n", r.Request, r.BaselineError)
	case len(r.Differences) == 0:
		fmt.Fprintf(out, "%s: no difference (%d)\n", r.Request, r.SandboxStatus)
	default:
		fmt.Fprintf(out, "%s: %d differences\n", r.Request, len(r.Differences))
	}
	for _, d := range r.Differences {
		fmt.Fprintf(out, "  %s\n    - %s\n    + %s\n", d.Where, d.Baseline, d.Sandbox)
	}
	switch {
	case r.Verified:
		fmt.Fprintln(out, "  verified: a fork answered each of the sandbox's requests")
	case r.BaselineError == "" || r.SandboxError == "":
		fmt.Fprintln(out, "  NOT VERIFIED that a fork answered:")
		for _, why := range r.NotVerified {
			fmt.Fprintf(out, "    %s\n", why)
		}
	}
	if n := len(r.Noise); n > 0 {
		fmt.Fprintf(out, "  noise left out, seen among %d answers of the baseline: %s\n", r.BaselineAnswers, strings.Join(r.Noise, ", "))
	}
}
