// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"time"
)

// The ways that a request can go.
const (
	direct        = "direct"
	untouched     = "untouched" // under the agent's eyes, to a destination that it does not know
	flow          = "flow"
	router        = "router"
	routerTagged  = "router, tagged"
	haproxy       = "HAProxy"
	haproxyTagged = "HAProxy, tagged"
)

// measurement is one cell of the report: a path under one kind of load.
type measurement struct {
	path string
	way  string
}

func (m measurement) String() string { return m.way + ": " + m.path }

// measurements is everything that one round measures.
func measurements() []measurement {
	return []measurement{
		{direct, keptAlive},
		{flow, keptAlive},
		{router, keptAlive},
		{routerTagged, keptAlive},
		{haproxy, keptAlive},
		{haproxyTagged, keptAlive},

		{direct, paced},
		{flow, paced},
		{router, paced},
		{routerTagged, paced},
		{haproxy, paced},
		{haproxyTagged, paced},

		{direct, pacedApart},
		{router, pacedApart},
		{haproxy, pacedApart},

		{direct, connecting},
		{untouched, connecting},
		{flow, connecting},
		{router, connecting},
		{haproxy, connecting},

		{direct, http2Load},
		{router, http2Load},
		{routerTagged, http2Load},
		{haproxy, http2Load},
		{haproxyTagged, http2Load},

		{direct, grpcLoad},
		{router, grpcLoad},
		{routerTagged, grpcLoad},
		{haproxy, grpcLoad},
		{haproxyTagged, grpcLoad},
	}
}

func (m measurement) needsAgent() bool {
	return m.path != direct && !m.needsHAProxy()
}

func (m measurement) needsHAProxy() bool {
	return strings.HasPrefix(m.path, haproxy)
}

// plan says how a path is loaded.
type plan struct {
	Path
	serverCore int
	proxyCore  int
	proxy      *process
}

// plan is the one place that says what the paths are and which cores they have.
func (s *scene) plan(m measurement) plan {
	port, haproxyAddr := port, haproxyAddr
	if o, ok := others[m.way]; ok {
		port, haproxyAddr = o.port, o.haproxy
	}
	service := netip.AddrPortFrom(serviceIP, port)
	p := plan{
		Path:       Path{Netns: s.client.Path, Cgroup: s.covered, Target: service, Want: baseline},
		serverCore: otherCore, proxyCore: otherCore,
	}
	switch m.path {
	case direct:
		// As flow in everything but our programs: two servers, or two pods, are never
		// equally fast, by where in memory they happen to be.
		p.Netns, p.Cgroup, p.Target, p.Want = s.runner.Path, s.outside, netip.AddrPortFrom(s.forked.IPv4, port), fork
		// The fork's other servers refuse what is not tagged.
		_, p.Tagged = others[m.way]
	case untouched:
		p.Target, p.Want = netip.AddrPortFrom(elsewhereIP, port), fork
	case flow:
		p.Netns, p.Want = s.runner.Path, fork
	case router:
		p.proxy = s.agent
	case routerTagged:
		p.proxy, p.Tagged, p.Want = s.agent, true, fork
	case haproxy:
		p.proxy, p.Cgroup, p.Target = s.haproxy, s.outside, haproxyAddr
	case haproxyTagged:
		p.proxy, p.Cgroup, p.Target, p.Tagged, p.Want = s.haproxy, s.outside, haproxyAddr, true, fork
	}
	if p.proxy != nil {
		// So that the proxy has its core for itself, and when requests are single
		// ones every hop is one between cores, as direct's are.
		p.serverCore = loadCore
	}
	if m.way == paced {
		p.serverCore, p.proxyCore = loadCore, loadCore
	}
	return p
}

// runs groups measurements into runs of the load generator: single requests go
// to all paths in one run.
func runs(what []measurement) [][]measurement {
	var all [][]measurement
	at := map[string]int{}
	for _, m := range what {
		i, ok := at[m.way]
		if ok && (m.way == paced || m.way == pacedApart) {
			all[i] = append(all[i], m)
			continue
		}
		at[m.way] = len(all)
		all = append(all, []measurement{m})
	}
	return all
}

// settings are what the flags say about a run.
type settings struct {
	rounds      int
	duration    time.Duration
	warmup      time.Duration
	connections int
	rate        int
	quiet       float64 // of the cores' time: others that use more have a measurement repeated
	seed        uint64
}

// results are the measurements, a slice of rounds for each. A round that has
// failed has no requests.
type results struct {
	cells    map[measurement][]Measured
	problems []string
	wrong    int
	repeated int
}

// measure has the load generator run once. Results are in the order of what.
func (s *scene) measure(ctx context.Context, set settings, what []measurement) ([]Measured, error) {
	l := Load{
		Way: what[0].way, Host: "web.bench", Key: routingKey,
		Connections: set.connections, Rate: set.rate, Warmup: set.warmup, For: set.duration * time.Duration(len(what)),
	}
	cores := map[*process]int{}
	for _, m := range what {
		p := s.plan(m)
		l.Paths = append(l.Paths, p.Path)
		cores[s.serversOf(m.way)[p.Want]] = p.serverCore
		if p.proxy != nil {
			cores[p.proxy] = p.proxyCore
		}
	}
	for p, core := range cores {
		if err := p.ended(); err != nil {
			return nil, err
		}
		if err := pinProcess(p.pid(), core); err != nil {
			return nil, err
		}
	}
	all := s.serversOf(what[0].way)
	l.Watch = []int{all[baseline].pid(), all[fork].pid()}
	for _, p := range []*process{s.agent, s.haproxy} {
		if _, used := cores[p]; used {
			l.Watch = append(l.Watch, p.pid())
		}
	}
	if o, ok := others[l.Way]; ok {
		return o.run(s, ctx, l)
	}
	return s.run(ctx, l)
}

// maxRepeats is how often one measurement is repeated when others disturb it.
const maxRepeats = 2

// measureAll runs all rounds. It stops early only when ctx ends; then the results
// are those of the rounds that are complete.
func (s *scene) measureAll(ctx context.Context, set settings, what []measurement, log io.Writer) (results, error) {
	res := results{cells: map[measurement][]Measured{}}
	order := rand.New(rand.NewPCG(set.seed, 0))
	all := runs(what)
	for round := range set.rounds {
		this := map[measurement]Measured{}
		// Another order each time: what a case does to the next one's caches, pools
		// and clock frequency is then nobody's advantage.
		for _, i := range order.Perm(len(all)) {
			got, err := s.measure(ctx, set, all[i])
			// Bounded twice, so that the end comes, and later rounds get their share.
			for range maxRepeats {
				if err != nil || got[0].foreign() <= set.quiet || res.repeated >= set.rounds*len(all)/2 {
					break
				}
				res.repeated++
				got, err = s.measure(ctx, set, all[i])
			}
			if ctx.Err() != nil {
				return res, fmt.Errorf("round %d: %w", round+1, ctx.Err())
			}
			name := all[i][0].String()
			if len(all[i]) > 1 {
				name = all[i][0].way
			}
			if err != nil {
				if errors.As(err, new(wrongAnswer)) {
					res.wrong++
					err = fmt.Errorf("WRONG ANSWER: %w", err)
				}
				res.problem(log, fmt.Sprintf("round %d, %s: %v", round+1, name, err))
				continue
			}
			for j, m := range all[i] {
				this[m] = got[j]
				fmt.Fprintf(log, "round %d/%d  %-26s %s\n", round+1, set.rounds, m, got[j].line(m.way))
				if got[j].Errors > 0 {
					res.problem(log, fmt.Sprintf("round %d, %s: %d connections failed, the first with: %s", round+1, m, got[j].Errors, got[j].FirstError))
				}
			}
		}
		for _, m := range what {
			res.cells[m] = append(res.cells[m], this[m])
		}
	}
	return res, nil
}

func (r *results) problem(log io.Writer, text string) {
	r.problems = append(r.problems, text)
	fmt.Fprintln(log, text)
}

// verdict is nil unless answers were wrong or did not come at all.
func (r *results) verdict() error {
	var errs []error
	if r.wrong > 0 {
		errs = append(errs, fmt.Errorf("%d measurements ended in a wrong answer", r.wrong))
	}
	for m, rounds := range r.cells {
		answers := 0
		for _, one := range rounds {
			answers += one.Requests
		}
		if answers == 0 {
			errs = append(errs, fmt.Errorf("%s: no round has given a figure", m))
		}
	}
	return errors.Join(errs...)
}

// line is a measurement in one line, for whoever watches.
func (m Measured) line(way string) string {
	if m.Requests == 0 {
		return "-"
	}
	if way == paced || way == pacedApart {
		return fmt.Sprintf("median %.1f µs, p99 %.1f µs", m.Median/1e3, m.P99/1e3)
	}
	return fmt.Sprintf("%.0f/s, load and servers %.0f%%, proxy %.0f%% of a core", m.perSecond(), 100*m.loadShare(), 100*m.proxyShare())
}

// servers is how many of the processes watched are servers; proxies come after
// them.
const servers = 2

func (m Measured) perSecond() float64 { return float64(m.Requests) / m.Seconds }

// proxyTime is the proxy's CPU time in seconds, zero where there is none.
func (m Measured) proxyTime() float64 {
	if len(m.Used.Processes) <= servers {
		return 0
	}
	return m.Used.Processes[servers].Seconds()
}

// loadTime is the CPU time of load generator and servers in seconds.
func (m Measured) loadTime() float64 {
	d := m.Own
	for i, p := range m.Used.Processes {
		if i < servers {
			d += p
		}
	}
	return d.Seconds()
}

func (m Measured) proxyShare() float64 { return m.proxyTime() / m.Seconds }
func (m Measured) loadShare() float64  { return m.loadTime() / m.Seconds }

// foreign is the share of all cores' time that somebody else has used.
func (m Measured) foreign() float64 {
	others := m.Used.Busy - m.Own
	for _, p := range m.Used.Processes {
		others -= p
	}
	return max(0, others.Seconds()) / m.Seconds / float64(runtime.NumCPU())
}
