// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sidetrack-dev/sidetrack/daemon/ledger"
	"github.com/sidetrack-dev/sidetrack/daemon/router"
	"github.com/sidetrack-dev/sidetrack/loader"
	"github.com/sidetrack-dev/sidetrack/routing"
)

// maxSeries bounds the series of each metric that has a label for the sandbox
// or the Service. What does not fit is summed up under the name "(other)".
const maxSeries = 1000

// other stands for everybody beyond maxSeries. No object can have this name.
var other = router.Overflow.Name

// State is what the agent is at.
type State struct {
	// Table is what the kernel acts by; nil before the first.
	Table *routing.Table
	// NotReady says why the agent is not ready; empty when it is.
	NotReady string
	// Problems counts what is wrong at present by where it is: "manifest",
	// "object" or "kernel".
	Problems map[string]int
	// PodsCovered is how many pods of this node have a known network namespace, and
	// a listener in it where one is wanted.
	PodsCovered int
	// Gaps in coverage: pods without a known network namespace, pods' namespaces
	// that should have a listener and have none, and connections from before a
	// redirect that still go to the baseline.
	PodsWithoutNamespace, PodsWithoutListener int
	UncoveredConnections                      map[routing.Name]int
	// ClosedConnections counts those that the agent has closed.
	ClosedConnections ClosedConnections
	// Listeners is how many namespaces the router listens in.
	Listeners int
}

// ClosedConnections counts connections from before a redirect that were closed,
// by why: they were idle, they had been busy for as long as that is allowed, or the
// policy is to close all.
type ClosedConnections struct{ Idle, Limit, All uint64 }

// Kernel is what is read of loader.Kernel.
type Kernel interface {
	Exits() ([]loader.ExitCount, error)
	Hits() (map[routing.RouteKey]loader.HitCount, error)
}

// Router is what is read of router.Router.
type Router interface{ Stats() router.Stats }

// Ledger is what is read of ledger.Ledger.
type Ledger interface{ Stats() ledger.Stats }

// Sources are what a scrape reads. All of them may be called at any time.
type Sources struct {
	Kernel Kernel
	Router Router
	Ledger Ledger
	State  func() State
}

// Metrics is the agent's registry.
type Metrics struct {
	registry *prometheus.Registry
	state    func() State
	applies  *prometheus.HistogramVec
	changes  prometheus.Histogram
}

// New returns the registry of an agent of the given version.
func New(version string, src Sources) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		state:    src.State,
		applies: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "sidetrack_apply_duration_seconds",
			Help:    "How long it took to bring a change into force in router and kernel, from objects to maps.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"result"}),
		changes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sidetrack_change_seconds",
			Help:    "How long it took from seeing a change in the API until it was in force in router and kernel.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}),
	}
	for _, result := range []string{"ok", "error"} {
		m.applies.WithLabelValues(result)
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sidetrack_build_info",
		Help: "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{
			"version": version, "goversion": runtime.Version(), "revision": revision(),
		},
	})
	build.Set(1)
	m.registry.MustRegister(
		build, m.applies, m.changes,
		&kernelCollector{kernel: src.Kernel, state: src.State},
		&routerCollector{router: src.Router},
		&ledgerCollector{ledger: src.Ledger},
		&stateCollector{state: src.State},
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// Changed counts how long a change took from being seen to being in force.
func (m *Metrics) Changed(took time.Duration) { m.changes.Observe(took.Seconds()) }

// Applied counts one attempt to bring a change into force.
func (m *Metrics) Applied(took time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.applies.WithLabelValues(result).Observe(took.Seconds())
}

// stateCollector shows the agent's State.
type stateCollector struct{ state func() State }

var (
	generationDesc = prometheus.NewDesc("sidetrack_generation",
		"The generation of the table in force in the kernel; 0 before the first.", nil, nil)
	readyDesc = prometheus.NewDesc("sidetrack_ready",
		"1 when the first table has been applied and the agent is not ending.", nil, nil)
	listenersDesc = prometheus.NewDesc("sidetrack_listeners",
		"Network namespaces in which the router listens.", nil, nil)
	podsDesc = prometheus.NewDesc("sidetrack_pods",
		"Pods of this node, by whether tagged traffic of theirs is routed: covered or uncovered.", []string{"coverage"}, nil)
	gapsDesc = prometheus.NewDesc("sidetrack_coverage_gaps",
		"What should be covered and is not: pods without a network namespace, pods without a listener, connections from before a redirect.",
		[]string{"kind"}, nil)
	uncoveredDesc = prometheus.NewDesc("sidetrack_uncovered_connections",
		"Connections from before a redirect that still go to the baseline, by the Service they lead to.",
		[]string{"namespace", "service"}, nil)
	closedDesc = prometheus.NewDesc("sidetrack_closed_connections_total",
		"Connections from before a redirect that the agent has closed, by why: idle, limit (busy for too long) or all (the policy).",
		[]string{"why"}, nil)
	problemsDesc = prometheus.NewDesc("sidetrack_problems",
		"What is wrong at present and said in the log, by where it is.", []string{"in"}, nil)
	entriesDesc = prometheus.NewDesc("sidetrack_table_entries",
		"Entries of the table in force, by kernel map.", []string{"map"}, nil)
)

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{generationDesc, readyDesc, listenersDesc, podsDesc, gapsDesc, uncoveredDesc, closedDesc, problemsDesc, entriesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.state()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ready := 0.0
	if s.NotReady == "" {
		ready = 1
	}
	gauge(readyDesc, ready)
	var generation uint64
	if s.Table != nil {
		generation = s.Table.Generation()
		size := s.Table.Size()
		gauge(entriesDesc, float64(size.Backends), "backends")
		gauge(entriesDesc, float64(size.Routes), "routes")
		gauge(entriesDesc, float64(size.Dests), "destinations")
		gauge(entriesDesc, float64(size.Identities), "identities")
	}
	gauge(generationDesc, float64(generation))
	gauge(listenersDesc, float64(s.Listeners))
	gauge(podsDesc, float64(s.PodsCovered), "covered")
	gauge(podsDesc, float64(s.PodsWithoutNamespace+s.PodsWithoutListener), "uncovered")
	gauge(gapsDesc, float64(s.PodsWithoutNamespace), "pod_without_namespace")
	gauge(gapsDesc, float64(s.PodsWithoutListener), "pod_without_listener")
	connections, rest := 0, 0
	for i, svc := range slices.SortedFunc(maps.Keys(s.UncoveredConnections), routing.Name.Compare) {
		n := s.UncoveredConnections[svc]
		connections += n
		if i < maxSeries {
			gauge(uncoveredDesc, float64(n), svc.Namespace, svc.Name)
		} else {
			rest += n
		}
	}
	if rest > 0 {
		gauge(uncoveredDesc, float64(rest), "", other)
	}
	gauge(gapsDesc, float64(connections), "connection")
	for why, n := range map[string]uint64{"idle": s.ClosedConnections.Idle, "limit": s.ClosedConnections.Limit, "all": s.ClosedConnections.All} {
		ch <- prometheus.MustNewConstMetric(closedDesc, prometheus.CounterValue, float64(n), why)
	}
	for _, in := range slices.Sorted(maps.Keys(s.Problems)) {
		gauge(problemsDesc, float64(s.Problems[in]), in)
	}
}

// kernelCollector shows what the programs in the kernel have counted.
type kernelCollector struct {
	kernel Kernel
	state  func() State
	series seriesCap
}

var (
	flowsDesc = prometheus.NewDesc("sidetrack_flows_total",
		"Tagged flows that the kernel has redirected (fork) or refused (reject), by sandbox and Service. Those of redirects that are gone are left out.",
		[]string{"namespace", "sandbox", "service", "verdict"}, nil)
	exitsDesc = prometheus.NewDesc("sidetrack_program_exits_total",
		"How often each program in the kernel has ended for each reason.",
		[]string{"program", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (c *kernelCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- flowsDesc
	ch <- exitsDesc
}

// Collect implements prometheus.Collector.
func (c *kernelCollector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	exits, err := c.kernel.Exits()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(exitsDesc, err)
	}
	for _, e := range exits {
		counter(exitsDesc, e.Count, e.Program, e.Reason)
	}
	table := c.state().Table
	if table == nil {
		return
	}
	hits, err := c.kernel.Hits()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(flowsDesc, err)
		return
	}
	sums := map[series]loader.HitCount{}
	for k, h := range hits {
		sandbox, service, ok := table.Describe(k)
		if !ok {
			continue
		}
		s := series{sandbox.Namespace, sandbox.Name, service.Name}
		sum := sums[s]
		sum.Redirected += h.Redirected
		sum.Refused += h.Refused
		sums[s] = sum
	}
	var rest loader.HitCount
	var others bool
	allowed := c.series.admit(maps.Keys(sums))
	for s, h := range sums {
		if !allowed[s] {
			rest.Redirected += h.Redirected
			rest.Refused += h.Refused
			others = true
			continue
		}
		counter(flowsDesc, h.Redirected, s.namespace, s.sandbox, s.service, routing.ToFork.String())
		counter(flowsDesc, h.Refused, s.namespace, s.sandbox, s.service, routing.Refuse.String())
	}
	if others {
		counter(flowsDesc, rest.Redirected, "", other, "", routing.ToFork.String())
		counter(flowsDesc, rest.Refused, "", other, "", routing.Refuse.String())
	}
}

// series names whom a counter is about.
type series struct{ namespace, sandbox, service string }

func (s series) compare(o series) int {
	return cmp.Or(cmp.Compare(s.namespace, o.namespace), cmp.Compare(s.sandbox, o.sandbox), cmp.Compare(s.service, o.service))
}

// seriesCap chooses which series are shown by name: who has been shown stays for
// as long as it is there, so that no counter jumps.
type seriesCap struct {
	mu    sync.Mutex
	shown map[series]bool
}

// admit returns those of all that are shown by name.
func (c *seriesCap) admit(all func(func(series) bool)) map[series]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	shown := make(map[series]bool, len(c.shown))
	var new []series
	for s := range all {
		if c.shown[s] {
			shown[s] = true
		} else {
			new = append(new, s)
		}
	}
	slices.SortFunc(new, series.compare)
	for _, s := range new[:min(len(new), maxSeries-len(shown))] {
		shown[s] = true
	}
	c.shown = shown
	return shown
}
