// SPDX-License-Identifier: Apache-2.0

// Package wire is what the ledger's collector and the nodes say to one another.
//
// It owns the words and the paths, and does nothing. Nodes dial, by way of the API
// server: each watches for questions, and posts its answers. So no port is open on a
// node, and nobody has to be told another key: the API server knows both by their
// ServiceAccounts' tokens.
//
//	GET  …/watch/nodes/NODE/questions   a Question on each line; an empty line now and then
//	POST …/nodes/NODE/answers           an Answer
//	POST …/nodes/NODE/traces            Traces, which the others find among their questions
package wire

import (
	"net/url"
	"time"

	ledgerv1alpha1 "github.com/sidetrack-dev/sidetrack/api/ledger/v1alpha1"
)

// Resources below nodes, as RBAC names them.
const (
	Nodes     = "nodes"
	Questions = "questions"
	Answers   = "answers"
	Traces    = "traces"
)

const root = "/apis/" + ledgerv1alpha1.APIVersion

// QuestionsPath is where a node watches for questions. The instance tells two agents of
// one node apart, which take turns.
func QuestionsPath(node, instance string) string {
	return root + "/watch/" + Nodes + "/" + url.PathEscape(node) + "/" + Questions + "?instance=" + url.QueryEscape(instance)
}

// AnswersPath is where it posts its answers.
func AnswersPath(node string) string {
	return root + "/" + Nodes + "/" + url.PathEscape(node) + "/" + Answers
}

// TracesPath is where it says which traces its pods' requests belong to.
func TracesPath(node string) string {
	return root + "/" + Nodes + "/" + url.PathEscape(node) + "/" + Traces
}

// Heartbeat is how often there is an empty line among the questions. Who hears
// nothing for three of them takes the other side to be gone.
const Heartbeat = 10 * time.Second

// MaxAnswer bounds an Answer in bytes, and AnswerRecords how many records one has;
// what is more comes in others. So many of the largest fit.
const (
	MaxAnswer     = 8 << 20
	AnswerRecords = 500
)

// Question asks a node for records.
type Question struct {
	ID uint64 `json:"id"`
	// Traces is set on what is no question, but what another node has said.
	Traces []Trace `json:"traces,omitempty"`
	// Hops are where nodes know the trace of the question to have gone with its key:
	// to be taken in before it is answered.
	Hops []Trace `json:"hops,omitempty"`
	// End says that nobody wants more of the answers to the question with this ID.
	End bool `json:"end,omitempty"`

	Group     bool   `json:"group,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`

	Since  time.Time `json:"since,omitzero"`
	Trace  string    `json:"trace,omitempty"`
	Limit  int       `json:"limit,omitempty"`
	Follow bool      `json:"follow,omitempty"`
	// After is the Next of the last answer that has arrived, when this agent gave it.
	After uint64 `json:"after,omitempty"`
}

// MaxTraces is how many a node says at once at most, and MaxTraceBytes how many bytes
// they have. MaxQuestion bounds the line in which others find them.
const (
	MaxTraces     = 64
	MaxTraceBytes = 1 << 20
	MaxQuestion   = 8 << 20
)

// Trace tells that a request of a trace was sent with a sandbox's key.
type Trace struct {
	ID        string `json:"id"`
	Group     bool   `json:"group,omitempty"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Service that it was sent to, and of a fork its endpoints.
	ServiceNamespace string   `json:"serviceNamespace"`
	Service          string   `json:"service"`
	Endpoints        []string `json:"endpoints,omitempty"`
}

// Answer is what a node says to a Question. Without Follow the last one is Done.
type Answer struct {
	ID uint64 `json:"id"`
	// Part counts the answers to a question from one on. An answer that may not have
	// arrived is sent again, so it tells one that has.
	Part uint64 `json:"part,omitempty"`
	// Next is the After of a question that goes on behind this answer.
	Next uint64 `json:"next"`
	Done bool   `json:"done,omitempty"`
	// Refused says why the question is not answered. There is nothing else then.
	Refused string `json:"refused,omitempty"`
	// Hops are where this node knows the trace of the question to have gone with its
	// key. They are in the answer that is Done.
	Hops []Trace `json:"hops,omitempty"`
	// Records is the node's part.
	Records ledgerv1alpha1.RecordList `json:"records"`
}
