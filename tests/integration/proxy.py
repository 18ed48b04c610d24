"""A proxy before an HTTP server that drops, resets or refuses chosen requests."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PASS = "pass"
DROP = "drop the reply"
RESET = "reset in the reply"
REFUSE = "refuse"
Decide = Callable[[str, str], str]


class Proxy:
    """A proxy on loopback that passes requests on to ``upstream`` (``host:port``).

    Attributes:
        decide: Returns the action for a request, given its method and path.
        delay_s: Seconds by which every reply is delayed.
        faults: Actions other than passing on, in order.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.decide: Decide = lambda method, path: PASS
        self.delay_s = 0.0
        self.faults: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The address on which the proxy listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def pass_on(self, handler: BaseHTTPRequestHandler) -> None:
        """Handle one request as ``decide`` says."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        handler.close_connection = True
        action = self.decide(handler.command, handler.path)
        if action != PASS:
            self.faults.append(action)
        if action == REFUSE:
            return
        connection = http.client.HTTPConnection(self.upstream)
        headers = {**handler.headers, "Host": self.upstream, "Connection": "close"}
        try:
            connection.request(handler.command, handler.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
        except OSError:
            return  # no server answers, so the proxy does not answer either
        finally:
            connection.close()
        time.sleep(self.delay_s)
        if action == DROP:
            return
        headers_to_pass = [
            item for item in reply.getheaders() if item[0].lower() not in CONNECTION_HEADERS
        ]
        handler.send_response(reply.status)
        for item in [
            *headers_to_pass,
            ("Content-Length", str(len(content))),
            ("Connection", "close"),
        ]:
            handler.send_header(*item)
        handler.end_headers()
        if action == RESET:
            handler.wfile.write(content[: len(content) // 2])
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            handler.connection.close()
            return
        handler.wfile.write(content)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                proxy.pass_on(self)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _any

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


CONNECTION_HEADERS = {"content-length", "connection", "transfer-encoding", "keep-alive"}


@contextmanager
def proxy_before(upstream: str) -> Iterator[Proxy]:
    """Put a proxy before a server."""
    proxy = Proxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
