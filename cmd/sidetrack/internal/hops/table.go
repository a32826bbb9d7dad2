// SPDX-License-Identifier: Apache-2.0

package hops

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	ledger "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// Columns are the heads of a table of all that people may want to know of records.
func Columns() []string {
	return []string{"TIME", "CALL", "REQUEST", "DECISION", "ANSWERED BY", "STATUS", "LATENCY", "SENT", "RECEIVED", "REASON", "NODE", "TRACE", "NOTES"}
}

// Cells are what a record says, a cell for each of Columns; what is not known is "-".
func Cells(r *ledger.Record) []string {
	request, answer, status, latency := string(r.Protocol), "", "", ""
	if q := r.Request; q != nil {
		request = strings.TrimSpace(q.Method + " " + q.Path)
	}
	if a := r.Answer; a != nil {
		answer = cmp.Or(a.Pod, a.Address)
	}
	switch {
	case r.GRPCStatus != nil:
		status = fmt.Sprintf("%d grpc %d", r.Status, *r.GRPCStatus)
	case r.Status != 0:
		status = fmt.Sprint(r.Status)
	}
	if r.LatencyNanos > 0 {
		latency = time.Duration(r.LatencyNanos).Round(100 * time.Microsecond).String()
	}
	var notes []string
	if r.Open {
		notes = append(notes, "under way")
	}
	if r.LostKey {
		notes = append(notes, "KEY LOST by "+cmp.Or(r.LostBy, Caller(r)))
	}
	if r.Healed {
		notes = append(notes, "healed by its trace")
	}
	if r.Error != "" {
		notes = append(notes, "error: "+r.Error)
	}
	cells := []string{
		r.Time.Format("15:04:05.000"), Caller(r) + " -> " + Callee(r), request, strings.ToUpper(string(r.Decision)), answer, status, latency,
		bytes(r.SentBytes), bytes(r.ReceivedBytes), strings.TrimSpace(r.Reason + " " + r.Target), r.Node, r.TraceID, strings.Join(notes, "; "),
	}
	for i, c := range cells {
		cells[i] = printable(cmp.Or(c, "-"))
	}
	return cells
}

// bytes is a count of bytes; zero is what was not counted.
func bytes(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// Rows are Cells of trees, one row for each hop: the call is drawn below the one that it
// came of.
func Rows(roots []*Hop) (rows [][]string) {
	for _, h := range roots {
		rows = appendRows(rows, h, "", "")
	}
	return rows
}

func appendRows(rows [][]string, h *Hop, first, rest string) [][]string {
	cells := Cells(h.Record)
	cells[1] = first + cells[1]
	if h.again {
		cells[1] += " (as above)"
	}
	rows = append(rows, cells)
	for i, c := range h.Children {
		if i < len(h.Children)-1 {
			rows = appendRows(rows, c, rest+"├─ ", rest+"│  ")
		} else {
			rows = appendRows(rows, c, rest+"└─ ", rest+"   ")
		}
	}
	return rows
}

// Answered are the names of the pods of a namespace that have answered, in the order in
// which they did first, and elsewhere those of other namespaces, as NAMESPACE/NAME.
func Answered(records []ledger.Record, namespace string) (pods, elsewhere []string) {
	seen := map[string]bool{}
	for i := range records {
		a := records[i].Answer
		if a == nil || a.Pod == "" || seen[a.Namespace+"/"+a.Pod] {
			continue
		}
		seen[a.Namespace+"/"+a.Pod] = true
		if a.Namespace == namespace {
			pods = append(pods, a.Pod)
		} else {
			elsewhere = append(elsewhere, a.Namespace+"/"+a.Pod)
		}
	}
	return pods, elsewhere
}
