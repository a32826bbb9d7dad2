// SPDX-License-Identifier: Apache-2.0

// Package handover is how an agent that runs and the one that takes over from it
// talk: the socket, who may speak, the messages and the descriptors that travel
// with them.
//
// It owns the form of what is said. In which order, and what follows from it, is
// daemon/agent's; what a connection's state means is daemon/router's. It never
// opens a namespace, touches the kernel's programs, or logs what it carries:
// states of connections may hold parts of routing keys.
//
// # The conversation
//
//	new → old   Hello     which versions it speaks
//	old → new   Will      or why not; with the lock, the metrics listener and a
//	                      pipe that ends when the old process does
//	old → new   Dests     destinations of open connections, as the old one calls them
//	new → old   Active    the new one is in force
//	old → new   Yielded   the old one is not, any more
//	old → new   Conns     connections; nobody watches them
//	new → old   Have      which of them it can go on with; it does not begin yet
//	old → new   Yours     they are, and the old one has let go of them
//	            (or Keep: nothing of it holds, the old one goes on with them)
//	old → new   Done      there are no more
//
// Each message is one packet (SOCK_SEQPACKET), bounded in bytes and descriptors.
// Whoever is killed in the middle leaves the other one with something certain: a
// connection is the old process's until Yours or its death, which only the pipe
// tells from a conversation that was given up.
//
// A Conn may be used by one sender and one receiver at a time.
package handover
