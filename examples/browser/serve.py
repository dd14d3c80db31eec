#!/usr/bin/env python3
"""Serves receive.html, and passes its streams on to the gateway, so that both are one origin.

    python3 serve.py                     http://127.0.0.1:8000 until Ctrl-C
    python3 serve.py --port 3000

FANFARE_URL is the gateway's address: http://127.0.0.1:8080 when not set. For trying things out;
a real site puts its pages and the gateway behind a proxy such as nginx.
"""

import argparse
import functools
import http.client
import http.server
import os
import pathlib
import urllib.parse

GATEWAY = urllib.parse.urlsplit(os.environ.get("FANFARE_URL", "http://127.0.0.1:8080"))


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/events"):
            self.pass_on()
        else:
            super().do_GET()

    def pass_on(self):
        gateway = http.client.HTTPConnection(GATEWAY.netloc)
        cursor = self.headers.get("Last-Event-ID")
        try:
            gateway.request("GET", self.path, headers={"Last-Event-ID": cursor} if cursor else {})
            answer = gateway.getresponse()
        except OSError as error:
            self.send_error(502, f"the gateway does not answer: {error}")
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        try:
            # read1: what is there, at once. read would wait for a full buffer.
            while data := answer.read1():
                self.wfile.write(data)
        except (OSError, http.client.HTTPException):
            pass  # The browser or the gateway has gone.
        finally:
            gateway.close()


arguments = argparse.ArgumentParser(description="Serves receive.html beside a gateway's streams.")
arguments.add_argument("--port", type=int, default=8000)
arguments = arguments.parse_args()

folder = pathlib.Path(__file__).resolve().parent
handler = functools.partial(Handler, directory=str(folder))
with http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), handler) as server:
    print(f"http://127.0.0.1:{server.server_port}/receive.html?channel=orders", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
