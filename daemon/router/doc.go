// SPDX-License-Identifier: Apache-2.0

// Package router is the request router: it accepts the connections that the
// kernel steers to it, reads the heads of their HTTP/1 requests and HTTP/2 streams,
// and sends each to the baseline or to a fork.
//
// It owns the listeners in the clients' network namespaces, the event loops and
// every socket of theirs. It decides nothing: for each request it asks a
// routing.Table. It never changes a byte, except for the baggage member that a
// table tells it to inject; never leaves a thread in a foreign namespace; never
// writes a routing key or anything of a request to the log; and does not recover
// from a panic, because without its process the kernel sends new connections
// straight to the baseline. A Router's methods may be called concurrently;
// everything below it belongs to one loop.
//
// # A connection's life
//
// A client in some pod connects to 10.96.0.7:80. The capture program rewrites
// that to 127.0.0.5:61234: the listener that Listen has opened on lo of the
// client's own namespace, and destination number 5. The client's SYN does not
// reach that listener, but the loop (hold.go). It reads the 5 back from the SYN's
// destination, asks the table what it stands for, and dials 10.96.0.7:80 from the
// same namespace, with the mark that keeps the kernel's programs off
// (upstream.go). If that is refused, so is the client. When it is connected the
// loop sends the SYN once more, so that it passes, and accepts (listener.go): both
// handshakes are over, and a server that speaks first can.
//
// The client's bytes go through consume (request.go). http1.Request finds the
// head's end and its keys, the table decides, and the head goes out as it came:
// to the upstream that is open, or to the fork's, which is dialled and kept as
// well. One upstream is current; answers come from nowhere else. A request for
// another waits until the current one owes nothing more, which is why relay
// (answer.go) follows the framing of answers too. Bodies pass through both
// without being kept.
//
// What is not HTTP/1, or whose framing peers might see differently, makes the
// connection opaque (opaque.go): from there on bytes are copied to and from the
// default upstream. If HTTP might be hidden in them they are searched for keys,
// and a tagged request among them ends the connection rather than reach the
// baseline. What has to be said to the client itself is in reply.go.
//
// A connection that begins with HTTP/2's preface, or is upgraded to it, is given to
// a http2.Relay, which knows what is to be done with frames; http2.go moves its
// bytes. All its upstreams are served at the same time then.
//
// # Memory and back-pressure
//
// A loop reads into one buffer that all its connections share, and sends from it.
// Only what a peer does not take is copied, and while there is such a rest
// nothing more is read from the other side. So a connection keeps at most the
// rest of one read (64 KiB) in each direction and the head that is being read
// (MaxHeadBytes), and an idle one keeps nothing. With HTTP/2 it keeps two tables of
// header compression for each server, and what its streams' windows allow, within
// Config.HTTP2.
//
// # Waiting
//
// How a loop waits for its events decides about latency more than anything else
// that it does: see wait.go.
//
// # The end
//
// FIN and RST are passed on as they come, after all bytes that came before. Only
// an upstream that is not the current one may close unnoticed; it is dialled
// again when it is needed.
package router
