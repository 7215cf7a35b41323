"""The pages of an agent over HTTP: /metrics, /healthz, /readyz. One loop serves them too; nobody is waited for.

A request is its first line, an answer ends the connection. There is nothing to log in to: give it an address that
only those reach who may look.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable, Mapping
from functools import partial

from conf.errors import IoFailure

LOG = logging.getLogger("vferry.agent")

# Status, content type, body.
Page = tuple[str, str, bytes]
TEXT = "text/plain; charset=utf-8"
_REQUEST_BYTES = 8192
_PATIENCE_S = 5.0
_VISITORS = 16


class Visitor:
    """One connection: what it has asked so far, then what is still to be sent."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self.connection = connection
        self.until = until
        self.asked = b""
        self.left = b""


class Pages:
    """A listening address and what stands behind each path."""

    def __init__(
        self,
        address: str,
        pages: Mapping[str, Callable[[], Page]],
        *,
        selector: selectors.BaseSelector,
        clock: Callable[[], float],
    ) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._socket = socket.create_server(
                (host.strip("[]"), int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                reuse_port=True,  # an agent that takes over has the same address
            )
        except OSError as error:
            raise IoFailure(f"cannot listen on {address}", details=str(error)) from error
        self._socket.setblocking(False)
        self._pages = pages
        self._selector = selector
        self._clock = clock
        self._visitors: dict[socket.socket, Visitor] = {}
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Leave the address to another agent; who is being answered is answered."""
        if self._socket.fileno() >= 0:
            self._selector.unregister(self._socket)
            self._socket.close()

    def expire(self) -> None:
        """Close the connections of those who take too long."""
        for visitor in [each for each in self._visitors.values() if each.until <= self._clock()]:
            self._close(visitor)

    def _accept(self) -> None:
        try:
            connection, _address = self._socket.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._visitors) >= _VISITORS:
            self._close(next(iter(self._visitors.values())))
        visitor = Visitor(connection, self._clock() + _PATIENCE_S)
        self._visitors[connection] = visitor
        self._selector.register(connection, selectors.EVENT_READ, partial(self._serve, visitor))

    def _serve(self, visitor: Visitor) -> None:
        if visitor.connection not in self._visitors:
            return  # closed earlier in the same round
        try:
            if visitor.left:
                visitor.left = visitor.left[visitor.connection.send(visitor.left) :]
                done = not visitor.left
            else:
                part = visitor.connection.recv(_REQUEST_BYTES)
                visitor.asked += part
                done = not part or len(visitor.asked) > _REQUEST_BYTES
                if b"\r\n\r\n" in visitor.asked:
                    visitor.left, done = self._answer(visitor.asked), False
                    self._selector.modify(visitor.connection, selectors.EVENT_WRITE, partial(self._serve, visitor))
        except BlockingIOError:
            return
        except OSError:
            done = True
        if done:
            self._close(visitor)

    def _answer(self, asked: bytes) -> bytes:
        words = asked.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        path = words[1].partition("?")[0] if len(words) == 3 else ""
        status, kind, body = "404 Not Found", TEXT, b"there are: " + " ".join(self._pages).encode() + b"\n"
        if words[0] not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET\n"
        elif path in self._pages:
            status, kind, body = self._pages[path]()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return head.encode() + (b"" if words[0] == "HEAD" else body)

    def _close(self, visitor: Visitor) -> None:
        del self._visitors[visitor.connection]
        self._selector.unregister(visitor.connection)
        visitor.connection.close()
