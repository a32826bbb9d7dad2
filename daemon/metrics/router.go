// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidetrack-dev/sidetrack/daemon/router"
)

// routerCollector shows what the request router has counted.
type routerCollector struct {
	router Router
	series seriesCap
}

var (
	requestsDesc = prometheus.NewDesc("sidetrack_requests_total",
		"Requests that the router has seen, by the sandbox that tagged them (empty: untagged), the Service they were addressed to, what became of them and why.",
		[]string{"namespace", "sandbox", "service", "verdict", "reason"}, nil)
	opaqueDesc = prometheus.NewDesc("sidetrack_opaque_connections_total",
		"Connections through the router that are not HTTP, by the sandbox that tagged them (empty: untagged), the Service they were addressed to, what became of them and why.",
		[]string{"namespace", "sandbox", "service", "verdict", "reason"}, nil)
	connectionsDesc = prometheus.NewDesc("sidetrack_router_connections",
		"Clients' connections that the router holds.", nil, nil)
	streamsDesc = prometheus.NewDesc("sidetrack_router_streams",
		"HTTP/2 streams that are open on them.", nil, nil)
	acceptedDesc = prometheus.NewDesc("sidetrack_router_connections_total",
		"Clients' connections that the router has accepted.", nil, nil)
	movedDesc = prometheus.NewDesc("sidetrack_router_connections_moved_total",
		"Clients' connections taken over from another agent (in) and given to one (out).", []string{"direction"}, nil)
	bytesDesc = prometheus.NewDesc("sidetrack_router_bytes_total",
		"Bytes that the router has read from clients and written to them.", []string{"direction"}, nil)
	tunnelsDesc = prometheus.NewDesc("sidetrack_router_tunnels_total",
		"Connections that have become tunnels (Upgrade, CONNECT).", nil, nil)
	retriesDesc = prometheus.NewDesc("sidetrack_router_retries_total",
		"Requests sent again because a kept-alive connection had been closed before it answered.", nil, nil)
	errorsDesc = prometheus.NewDesc("sidetrack_router_errors_total",
		"What went another way than the plain one, by reason.", []string{"reason"}, nil)
)

// Describe implements prometheus.Collector.
func (c *routerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, opaqueDesc, connectionsDesc, streamsDesc, acceptedDesc, movedDesc, bytesDesc, tunnelsDesc, retriesDesc, errorsDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *routerCollector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := c.router.Stats()
	ch <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.GaugeValue, float64(s.Open))
	ch <- prometheus.MustNewConstMetric(streamsDesc, prometheus.GaugeValue, float64(s.Streams))
	counter(acceptedDesc, s.Accepted)
	counter(movedDesc, s.Received, "in")
	counter(movedDesc, s.Given, "out")
	counter(bytesDesc, s.FromClients, "from_clients")
	counter(bytesDesc, s.ToClients, "to_clients")
	counter(tunnelsDesc, s.Tunnels)
	counter(retriesDesc, s.Retries)
	for reason, n := range s.Errors {
		counter(errorsDesc, n, reason)
	}

	names := map[series]bool{}
	for _, counts := range []map[router.RequestKey]uint64{s.Requests, s.Opaque} {
		for k := range counts {
			if k.Service != router.Overflow {
				names[seriesOf(k)] = true
			}
		}
	}
	allowed := c.series.admit(maps.Keys(names))
	// The same verdict and reason of everybody else are one series.
	type rest struct{ verdict, reason string }
	tell := func(d *prometheus.Desc, counts map[router.RequestKey]uint64) {
		others := map[rest]uint64{}
		for k, n := range counts {
			if s := seriesOf(k); allowed[s] && k.Service != router.Overflow {
				counter(d, n, s.namespace, s.sandbox, s.service, k.Verdict.String(), k.Reason.String())
			} else {
				others[rest{k.Verdict.String(), k.Reason.String()}] += n
			}
		}
		for r, n := range others {
			counter(d, n, "", other, "", r.verdict, r.reason)
		}
	}
	tell(requestsDesc, s.Requests)
	tell(opaqueDesc, s.Opaque)
}

// seriesOf names whom requests are about. A sandbox is in the namespace of the
// Services that it redirects.
func seriesOf(k router.RequestKey) series {
	ns := k.Service.Namespace
	if ns == "" {
		ns = k.Sandbox.Namespace
	}
	return series{ns, k.Sandbox.Name, k.Service.Name}
}
