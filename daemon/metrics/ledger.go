// SPDX-License-Identifier: Apache-2.0

package metrics

import "github.com/prometheus/client_golang/prometheus"

// ledgerCollector shows how much of what was routed is known.
type ledgerCollector struct{ ledger Ledger }

var (
	recordsDesc = prometheus.NewDesc("sidetrack_ledger_records",
		"Records of tagged requests and flows that are kept.", nil, nil)
	recordBytesDesc = prometheus.NewDesc("sidetrack_ledger_bytes",
		"Bytes that they take.", nil, nil)
	recordedDesc = prometheus.NewDesc("sidetrack_ledger_records_total",
		"Records that were made.", nil, nil)
	droppedDesc = prometheus.NewDesc("sidetrack_ledger_dropped_total",
		"Records that were dropped for newer ones.", nil, nil)
	untoldDesc = prometheus.NewDesc("sidetrack_ledger_untold_flows_total",
		"Tagged flows that left no record because too many began at once.", nil, nil)
	unendedDesc = prometheus.NewDesc("sidetrack_ledger_unended_flows_total",
		"Tagged flows whose records do not say what they carried because too many ended at once or were open.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *ledgerCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{recordsDesc, recordBytesDesc, recordedDesc, droppedDesc, untoldDesc, unendedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *ledgerCollector) Collect(ch chan<- prometheus.Metric) {
	s := c.ledger.Stats()
	gauge := func(d *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v))
	}
	counter := func(d *prometheus.Desc, v uint64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(recordsDesc, s.Records)
	gauge(recordBytesDesc, s.Bytes)
	counter(recordedDesc, s.Added)
	counter(droppedDesc, s.Dropped)
	counter(untoldDesc, s.Unread)
	counter(unendedDesc, s.Unended)
}
