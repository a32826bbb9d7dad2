# SPDX-License-Identifier: Apache-2.0
"""An HTTP server of the standard library that says who it is: NAME PORT..."""

import http.server
import socket
import sys
import threading

NAME = sys.argv[1]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = b""
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            while True:
                size = int(self.rfile.readline().split(b";")[0], 16)
                body += self.rfile.read(size)
                self.rfile.readline()
                if size == 0:
                    break
        elif length:
            body = self.rfile.read(length)
        text = body or NAME.encode() + b"\n"
        self.send_response(200)
        self.send_header("X-Served-By", NAME)
        for name in ("X-Expect", "X-Number"):
            self.send_header(name, self.headers.get(name) or "")
        self.send_header("X-Remote", self.client_address[0])
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_HEAD = answer

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128
    daemon_threads = True


servers = [Server(("::", int(port)), Handler) for port in sys.argv[2:]]
for s in servers[1:]:
    threading.Thread(target=s.serve_forever, daemon=True).start()
servers[0].serve_forever()
