// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/api/v1alpha1"
	"github.com/sidetrack-dev/sidetrack/routing"
)

var hooks = [...]ledgerv1alpha1.Hook{
	AtRouter: ledgerv1alpha1.HookRouter, AtConnect: ledgerv1alpha1.HookConnect, AtSendMsg: ledgerv1alpha1.HookSendMsg,
}

var protocols = [...]ledgerv1alpha1.Protocol{
	HTTP1: ledgerv1alpha1.ProtocolHTTP1, HTTP2: ledgerv1alpha1.ProtocolHTTP2, GRPC: ledgerv1alpha1.ProtocolGRPC,
	TCP: ledgerv1alpha1.ProtocolTCP, UDP: ledgerv1alpha1.ProtocolUDP, Opaque: ledgerv1alpha1.ProtocolOpaque,
}

var decisions = map[routing.Verdict]ledgerv1alpha1.Decision{
	routing.ToFork: ledgerv1alpha1.DecisionFork, routing.ToBaseline: ledgerv1alpha1.DecisionBaseline, routing.Refuse: ledgerv1alpha1.DecisionReject,
}

// Record returns an entry as clients read it.
func (l *Ledger) Record(e *Entry) ledgerv1alpha1.Record {
	kind := v1alpha1.SandboxKind
	if e.Owner.Group {
		kind = v1alpha1.RouteGroupKind
	}
	r := ledgerv1alpha1.Record{
		Time:          metav1.NewMicroTime(e.At),
		Node:          l.cfg.Node,
		Hook:          hooks[e.Hook],
		Protocol:      protocols[e.Protocol],
		Tag:           ledgerv1alpha1.Tag{Kind: kind, Namespace: e.Owner.Name.Namespace, Name: e.Owner.Name.Name},
		Decision:      decisions[e.Verdict],
		Reason:        e.Reason.String(),
		Target:        e.Target,
		Status:        int32(e.Status),
		SentBytes:     e.Sent,
		ReceivedBytes: e.Received,
		LatencyNanos:  e.Latency.Nanoseconds(),
		TraceID:       e.Trace.String(),
		ParentID:      e.Parent.String(),
		LostKey:       e.Lost,
		Healed:        e.Healed,
		Error:         e.Error,
		Open:          e.Open,
	}
	if e.Flow != 0 {
		r.Flow = strconv.FormatUint(e.Flow, 36)
	}
	if p := e.caller; p != nil {
		r.Source = ledgerv1alpha1.Source{Namespace: p.Name.Namespace, Pod: p.Name.Name, Workload: p.Workload, Sandbox: p.Sandbox}
		if e.Lost {
			r.LostBy = cmp.Or(p.Workload, "Pod/"+p.Name.Name)
		}
	}
	if e.Service != (routing.Name{}) {
		r.Service = &ledgerv1alpha1.Service{Namespace: e.Service.Namespace, Name: e.Service.Name, Port: int32(e.Port)}
	}
	if e.Dialled.IsValid() {
		r.Dialled = e.Dialled.String()
	}
	if e.Answer.IsValid() {
		r.Answer = &ledgerv1alpha1.Answer{Address: e.Answer.String(), Namespace: e.answering.Namespace, Pod: e.answering.Name}
	}
	if len(e.Method) > 0 {
		r.Request = &ledgerv1alpha1.Request{Method: string(e.Method), Authority: string(e.Authority), Path: string(e.Path)}
	}
	if e.HasGRPC {
		r.GRPCStatus = &e.GRPCStatus
	}
	return r
}

// List is Read for clients: the page as this node's part of a RecordList.
func (l *Ledger) List(o Owner, q Query) (ledgerv1alpha1.RecordList, uint64) {
	p := l.Read(o, q)
	since := metav1.NewMicroTime(p.Since)
	list := ledgerv1alpha1.RecordList{
		TypeMeta: metav1.TypeMeta{APIVersion: ledgerv1alpha1.APIVersion, Kind: ledgerv1alpha1.RecordListKind},
		Items:    make([]ledgerv1alpha1.Record, 0, len(p.Entries)),
		Nodes: []ledgerv1alpha1.NodeAnswer{{
			Node: l.cfg.Node, Answered: true, Since: &since, Dropped: p.Dropped, Omitted: p.Omitted, MissedFlows: p.Unread, MissedEnds: p.Unended,
		}},
	}
	for _, e := range p.Entries {
		list.Items = append(list.Items, l.Record(e))
	}
	SortRecords(list.Items)
	return list, p.Next
}

// SortRecords puts records into the order of their times; a request is made before
// those that it causes, but ends after them.
func SortRecords(all []ledgerv1alpha1.Record) {
	slices.SortStableFunc(all, func(a, b ledgerv1alpha1.Record) int {
		return cmp.Or(a.Time.Compare(b.Time.Time), strings.Compare(a.Node, b.Node))
	})
}

// QueryOf turns what a client asks for into a Query.
func QueryOf(o ledgerv1alpha1.Options) Query {
	return Query{Since: o.Since, Trace: ParseTraceID(o.Trace), Limit: o.Limit}
}
