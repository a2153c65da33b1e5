"""An HTTP service that other hosts call by its name: its sidecar registers it.

python http_service.py 8080 greetings.example
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

SIDECAR = os.environ.get("SIDECAR", "http://127.0.0.1:13330")


class Greeting(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"Python greets {self.path[1:]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def tell_sidecar(path: str, **body: object) -> None:
    with urlopen(Request(SIDECAR + path, json.dumps(body).encode())) as response:
        answer = json.load(response)
    if not answer["success"]:
        sys.exit(f"the sidecar says: {answer['errorMessage']}")


def main() -> None:
    port, service = int(sys.argv[1]), sys.argv[2]
    server = ThreadingHTTPServer(("127.0.0.1", port), Greeting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tell_sidecar("/services/publish", serviceName=service, protocolType="http", port=port)
    print(f"{service} is published", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    # In this order no request is lost: the answer comes when nobody calls any more.
    tell_sidecar("/services/unpublish", serviceName=service, protocolType="http")
    server.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
