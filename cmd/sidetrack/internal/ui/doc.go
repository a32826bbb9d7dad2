// SPDX-License-Identifier: Apache-2.0

// Package ui lets a browser on this machine see the cluster's page, with the
// rights of whoever runs the program.
//
// It owns a small web server on 127.0.0.1 that passes on to the API server what the
// page has to read, and nothing else. The page itself is the cluster's (see package
// page of the ledger): it is not known here. A Server may be used concurrently.
//
// # Who may use it
//
// Whoever can use the server can read what its user can, so it trusts no request
// because of where it is from:
//
//   - A request has to know a random folder, which is in the address, and a random
//     cookie, which the address that is printed gives. The cookie is for that folder
//     only, since cookies do not tell ports apart: other servers on 127.0.0.1, which
//     may be other people's, do not get it.
//   - It has to name this server's own address as its Host, so that a name of
//     somebody else's that leads to 127.0.0.1 is of no use, and, if it names an
//     Origin, this one. No answer allows another origin anything.
//   - It is GET or HEAD of a path of the page. Of its headers, two are passed on.
package ui
