"""A proxy for HTTP that fails as networks and their boxes do, at random with a seed.

It reads whole requests, so that it can lose one before or after the server has seen it, hand it over later than the
client waits, hand it over again long after it was answered, and cut a reply off anywhere.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections import Counter

# Share of each mishap; the rest passes.
MISHAPS = {
    "lose the request": 0.05,
    "lose the reply": 0.06,
    "cut the reply off": 0.06,
    "delay the request": 0.06,
    "delay the reply": 0.05,
    "hand over after the client has left": 0.05,
    "hand over twice": 0.06,
    "hand over again later": 0.06,
}


class FlappingProxy:
    """Listens on a port of its own and passes what it gets to ``port``."""

    def __init__(self, port, *, seed, mishaps=MISHAPS, delay_s=0.3, least_delay_s=0.0, listen=0):
        self._target = ("127.0.0.1", port)
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._mishaps = mishaps
        self._delays_s = least_delay_s, delay_s
        self._late = []
        self._in_hand = 0
        self.seen = Counter()
        self._listener = socket.create_server(("127.0.0.1", listen), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """Listen no more, and see that everything late has arrived."""
        # Only this wakes who waits in accept(): until then the kernel would go on to accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drain()

    def drain(self):
        """Wait until every late request has arrived."""
        while True:
            with self._lock:
                late, self._late = self._late, []
                in_hand = self._in_hand
            if not late and not in_hand:
                return
            for thread in late:
                thread.join()
            time.sleep(0.01)

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client, contextlib.suppress(OSError), client.makefile("rb") as reader:
            while request := _read_message(reader):
                with self._lock:
                    self._in_hand += 1
                try:
                    if not self._answer(client, request):
                        return
                finally:
                    with self._lock:
                        self._in_hand -= 1

    def _answer(self, client, request):
        """Answer one request; false when the connection is to be closed."""
        with self._lock:
            mishap = self._choose()
            self.seen[mishap] += 1
            delay_s = self._random.uniform(*self._delays_s)
            cut = self._random.random()
        if mishap == "lose the request":
            return False
        if mishap == "say nothing":
            return bool(client.recv(1, socket.MSG_PEEK))  # until the client leaves
        if mishap == "hand over after the client has left":
            self._later(request, delay_s)
            return False
        if mishap == "hand over twice":
            self._exchange(request)
        if mishap == "delay the request":
            time.sleep(delay_s)
        reply = self._exchange(request)
        if mishap == "hand over again later":
            self._later(request, delay_s)
        if mishap == "lose the reply":
            return False
        if mishap == "delay the reply":
            time.sleep(delay_s)
        if mishap == "cut the reply off":
            client.sendall(reply[: int(len(reply) * cut)])
            return False
        client.sendall(reply)
        return True

    def _choose(self):
        at = self._random.random()
        for mishap, share in self._mishaps.items():
            at -= share
            if at < 0:
                return mishap
        return "pass"

    def _later(self, request, delay_s):
        def hand_over():
            time.sleep(delay_s)
            with contextlib.suppress(OSError):
                self._exchange(request)

        thread = threading.Thread(target=hand_over, daemon=True)
        with self._lock:
            self._late.append(thread)
            thread.start()

    def _exchange(self, request):
        with socket.create_connection(self._target) as server, server.makefile("rb") as reader:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.sendall(request)
            return _read_message(reader)


def _read_message(reader):
    """Read one request or reply as it is, empty at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        if not line:
            return b""
        head += line
    fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        return head + b"".join(_chunks(reader))
    length = int(fields.get(b"content-length", 0))
    body = reader.read(length)
    # Who left in the middle of a request has not sent it: a server would wait for its end for ever.
    return head + body if len(body) == length else b""


def _chunks(reader):
    while True:
        size_line = reader.readline()
        yield size_line
        size = int(size_line.split(b";")[0], 16)
        if size == 0:
            break
        yield reader.read(size + 2)
    # Trailers, up to the empty line.
    while True:
        line = reader.readline()
        yield line
        if line in (b"\r\n", b""):
            return
