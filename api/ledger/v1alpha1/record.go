// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Record is what one hop of tagged traffic left behind: a request or a connection
// at the request router, or a flow at the kernel's hooks. It is made when the
// request or connection is over. A flow of TCP leaves one when it is over, and where it
// lasts, one more while it is under way (see Flow); others leave one when they begin.
// Datagrams that one socket sends to one destination are one record, and another one
// after 10 seconds for as long as it goes on.
type Record struct {
	// Time is when the request's head was read, or the flow began.
	Time metav1.MicroTime `json:"time"`
	// Node is where it was.
	// +optional
	Node string `json:"node,omitempty"`
	// Hook is who made the record.
	Hook Hook `json:"hook"`
	// Protocol is what was spoken.
	Protocol Protocol `json:"protocol"`
	// Flow joins the records of one flow of a node: a list has one of them, that of its
	// end where it has ended, and a stream brings that after the one that is Open.
	// Missing for what is no flow, and for flows whose end is not told: UDP's, those of
	// pods on the host's network, and those that were refused at once.
	// +optional
	Flow string `json:"flow,omitempty"`
	// Open says that the flow was under way when the record was made: how long it lasts
	// and what it carries is in another one, when it is over.
	// +optional
	Open bool `json:"open,omitempty"`
	// Tag is the Sandbox or RouteGroup whose ledger this is: whose key the request
	// carried, or should have carried, or whose pod the source is.
	Tag Tag `json:"tag"`
	// Source is who called.
	Source Source `json:"source"`
	// Service is the Service that was addressed. Missing where that is not known.
	// +optional
	Service *Service `json:"service,omitempty"`
	// Dialled is the address and port that the caller dialled.
	// +optional
	Dialled string `json:"dialled,omitempty"`
	// Decision is where it was sent.
	Decision Decision `json:"decision"`
	// Reason is why, in the words of the metrics: redirected, no_redirect,
	// unavailable, unknown_destination, untagged.
	Reason string `json:"reason"`
	// Target says in words where the redirect leads, or why it may not be followed.
	// +optional
	Target string `json:"target,omitempty"`
	// Answer is who was to answer. Missing where nobody was asked.
	// +optional
	Answer *Answer `json:"answer,omitempty"`
	// Request is what the request's head said. Missing for what is no HTTP.
	// +optional
	Request *Request `json:"request,omitempty"`
	// Status is the HTTP status that the caller got; zero when there was none.
	// +optional
	Status int32 `json:"status,omitempty"`
	// GRPCStatus is the gRPC status code that the caller got.
	// +optional
	GRPCStatus *int32 `json:"grpcStatus,omitempty"`
	// SentBytes is how much the caller sent, heads and framing as well; of datagrams,
	// and of a flow that the caller has aborted (SO_LINGER), nothing is counted.
	// +optional
	SentBytes int64 `json:"sentBytes,omitempty"`
	// ReceivedBytes is how much the caller was sent.
	// +optional
	ReceivedBytes int64 `json:"receivedBytes,omitempty"`
	// LatencyNanos is the time from the head's end to the answer's last byte, or how
	// long the connection or the flow lasted: from connect(2) until nothing of it was
	// left in the kernel. Zero for flows whose end is not told.
	// +optional
	LatencyNanos int64 `json:"latencyNanos,omitempty"`
	// TraceID is the trace that the request's traceparent named, 32 hexadecimal
	// digits.
	// +optional
	TraceID string `json:"traceID,omitempty"`
	// ParentID is the span that called, 16 hexadecimal digits.
	// +optional
	ParentID string `json:"parentID,omitempty"`
	// LostKey says that this call belongs to a tagged trace but came without the
	// key. Source is who lost it.
	// +optional
	LostKey bool `json:"lostKey,omitempty"`
	// LostBy is the workload that had received a request of the trace with the key
	// and made this call without it; its pod where the workload is not known.
	// +optional
	LostBy string `json:"lostBy,omitempty"`
	// Healed says that the call went where the key would have sent it, and got the
	// key added.
	// +optional
	Healed bool `json:"healed,omitempty"`
	// Error says what went wrong, if anything did.
	// +optional
	Error string `json:"error,omitempty"`
}

// Hook is a place where records are made.
type Hook string

// The hooks. Router is the request router; Connect and SendMsg are the kernel's
// hooks of those names, which redirect flows.
const (
	HookRouter  Hook = "Router"
	HookConnect Hook = "Connect"
	HookSendMsg Hook = "SendMsg"
)

// Protocol is what was spoken, as far as the hook could tell.
type Protocol string

// The protocols. Opaque is a connection at the request router that is no HTTP, or
// whose framing is in doubt; TCP and UDP are flows.
const (
	ProtocolHTTP1  Protocol = "http/1.1"
	ProtocolHTTP2  Protocol = "h2"
	ProtocolGRPC   Protocol = "grpc"
	ProtocolTCP    Protocol = "tcp"
	ProtocolUDP    Protocol = "udp"
	ProtocolOpaque Protocol = "opaque"
)

// Decision is where traffic was sent.
type Decision string

// The decisions. Reject is a 503, or a refused connection.
const (
	DecisionFork     Decision = "fork"
	DecisionBaseline Decision = "baseline"
	DecisionReject   Decision = "reject"
)

// Tag names the owner of a ledger.
type Tag struct {
	// Kind is Sandbox or RouteGroup.
	Kind string `json:"kind"`
	// Namespace of it.
	Namespace string `json:"namespace"`
	// Name of it.
	Name string `json:"name"`
}

// Source is who called.
type Source struct {
	// Namespace of the pod.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Pod is its name. Empty where no pod is known, such as in a node's own network.
	// +optional
	Pod string `json:"pod,omitempty"`
	// Workload is what the pod belongs to, such as Deployment/cart. Empty for a pod
	// that nothing owns.
	// +optional
	Workload string `json:"workload,omitempty"`
	// Sandbox is the Sandbox of the pod's namespace that the pod belongs to.
	// +optional
	Sandbox string `json:"sandbox,omitempty"`
}

// Service names a port of a Service.
type Service struct {
	// Namespace of the Service.
	Namespace string `json:"namespace"`
	// Name of the Service.
	Name string `json:"name"`
	// Port of the Service, which may differ from the port of its pods. Zero where
	// it is not known.
	// +optional
	Port int32 `json:"port,omitempty"`
}

// Answer is who was to answer.
type Answer struct {
	// Address is the address and port that was connected to: behind a Service's own
	// address that of the pod, where it is known which was chosen.
	Address string `json:"address"`
	// Namespace of the pod that has the address.
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// Pod that has the address. Empty where none is known to, and where nobody can
	// tell which pod was chosen behind a Service's own address.
	// +optional
	Pod string `json:"pod,omitempty"`
}

// Request is what a request's head said.
type Request struct {
	// Method of the request.
	Method string `json:"method"`
	// Authority is its Host header or :authority.
	// +optional
	Authority string `json:"authority,omitempty"`
	// Path is its path without the query, which may hold secrets; the first 1024
	// bytes of it.
	// +optional
	Path string `json:"path,omitempty"`
}

// RecordList is what is known of a Sandbox's, or a RouteGroup's, traffic: in
// order of time, and never silently less than was asked for.
//
// +kubebuilder:object:root=true
type RecordList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	// Items are the records, the oldest first.
	Items []Record `json:"items"`
	// Nodes are the nodes that were asked, in order of name. In a stream, those of
	// which there is something new to say.
	// +optional
	Nodes []NodeAnswer `json:"nodes,omitempty"`
	// Ended says why the ledger has ended a stream, as the error of a request would: in
	// the last list, which has nothing else. Of reason Forbidden the reader may not read
	// any more, of TooManyRequests others want to; of another it may well begin again.
	// Missing where the connection was lost or the ledger's server ends, and from
	// one of a version that did not know it.
	// +optional
	Ended *metav1.Status `json:"ended,omitempty"`
}

// NodeAnswer is what became of asking one node.
type NodeAnswer struct {
	// Node that was asked.
	Node string `json:"node"`
	// Answered says that the node's records are among the items. When it is false
	// Message says why not, and there is a gap.
	Answered bool `json:"answered"`
	// Message says why the node did not answer.
	// +optional
	Message string `json:"message,omitempty"`
	// Since is when the node's ledger of this Sandbox begins: when its agent started,
	// or, after records were dropped, when the newest of those was made. What was recorded
	// later is all there; Time of a record may be earlier, since it is that of the beginning.
	// +optional
	Since *metav1.MicroTime `json:"since,omitempty"`
	// Dropped is how many of this Sandbox's records the node has dropped, because its
	// memory for them is bounded.
	// +optional
	Dropped int64 `json:"dropped,omitempty"`
	// MissedFlows is how many flows of the node's sandboxes, whichever, left no record
	// because too many began at once.
	// +optional
	MissedFlows int64 `json:"missedFlows,omitempty"`
	// MissedEnds is how many flows of the node's sandboxes, whichever, have records that
	// do not say what they carried, because too many ended at once, or were open. Where
	// that is so for another reason, the record's Error says it alone.
	// +optional
	MissedEnds int64 `json:"missedEnds,omitempty"`
	// Omitted is how many more records match than the limit let through.
	// +optional
	Omitted int64 `json:"omitted,omitempty"`
	// Trace says how far the answer can be relied on for the trace that was asked for.
	// Missing where none was, in a stream, and from a node or a collector of a version
	// that did not know it.
	// +optional
	Trace *TraceAnswer `json:"trace,omitempty"`
}

// TraceAnswer says whether a node knows all that it should of one trace. A call is on
// record when it is over; one that came without the key of its trace, as soon as it is
// known that its caller had received the key, whichever node that was on. A node that
// has no call of the trace under way, and knows what was over for long enough, has no
// record to add to those that it gave.
type TraceAnswer struct {
	// Open is how many calls of the trace are under way by way of this node.
	// +optional
	Open int64 `json:"open,omitempty"`
	// KnownNanos is the time before the answer, in nanoseconds, from which on the node
	// knows which calls of the trace have lost the key. Of what was over before it may
	// have forgotten some.
	KnownNanos int64 `json:"knownNanos"`
	// Foreign says that the node has seen the trace with another key first, so that it
	// looks for no calls that have lost this Sandbox's.
	// +optional
	Foreign bool `json:"foreign,omitempty"`
	// Unwatched says that the Sandbox neither observes nor propagates, so that nodes do
	// not tell each other where its traces have gone: what a workload has lost that
	// received the key by way of another node is not known, and KnownNanos is zero.
	// +optional
	Unwatched bool `json:"unwatched,omitempty"`
	// Strays are calls of the trace to Services that the Sandbox redirects, which came
	// without its key, with none or with another, by way of this node, and of whose callers nobody has seen that they
	// had received it: the key was lost on the way to them, where the Sandbox does not
	// look, or by themselves. Missing from a node of a version that did not look for
	// them, and where Foreign or Unwatched says why they are not known. KnownNanos holds
	// for them, too.
	// +optional
	Strays *Strays `json:"strays,omitempty"`
}

// Strays says where calls went that came without the key of their trace, from whoever
// may never have had it.
type Strays struct {
	// Services are those that they went to, their ports left out; empty: there were none.
	// +optional
	Services []Service `json:"services,omitempty"`
}
