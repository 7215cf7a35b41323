"""A TCP connection whose every wait ends at one moment, however slowly the peer dribbles; http.client speaks over it.

A socket's own time-out begins anew with each byte, and the system's resolver knows none. What an error on such a
connection means is told here too.
"""

from __future__ import annotations

import io
import ipaddress
import socket
import ssl
import threading
import time
from typing import Any

# What OpenSSL makes of a first answer that is no TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST")


class Bounded:
    """One connected socket, with the few methods that http.client uses."""

    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock = sock
        self._end = end

    def limit(self, seconds: float) -> None:
        """Let everything from now on end after so many seconds."""
        self._end = time.monotonic() + seconds

    def sendall(self, content: bytes) -> None:
        """Send all of it.

        Raises: OSError, TimeoutError at the end.
        """
        left = memoryview(content)
        while left:
            self._arm()
            left = left[self._sock.send(left) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the side that is read."""
        assert mode == "rb"
        return io.BufferedReader(_Reading(self))

    def receive_into(self, buffer: memoryview) -> int:
        """Receive what is there, at least one byte, or 0 at the end of the stream."""
        self._arm()
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        """Close it at once."""
        self._sock.close()

    def _arm(self) -> None:
        self._sock.settimeout(_remaining_s(self._end))


class _Reading(io.RawIOBase):
    def __init__(self, bounded: Bounded) -> None:
        self._bounded = bounded

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        return self._bounded.receive_into(buffer)


def connect(host: str, port: int, seconds: float, tls: ssl.SSLContext | None, *, server_name: str = "") -> Bounded:
    """Connect, with TLS where a context is given; the certificate is for ``server_name``, the host when empty.

    Raises: OSError, of which ssl.SSLError is one; TimeoutError.
    """
    end = time.monotonic() + seconds
    sock = _connected(host, port, end)
    try:
        # A request's headers and body are two segments; the second must not wait for the first one's receipt.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            # A handshake has one time-out as a whole, other than the reads and writes after it.
            sock.settimeout(_remaining_s(end))
            sock = tls.wrap_socket(sock, server_hostname=server_name or host)
    except BaseException:
        sock.close()
        raise
    return Bounded(sock, end)


def speaks_tls(host: str, port: int, seconds: float) -> bool:
    """Whether a server that has nothing to say to plain HTTP expects TLS."""
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        connect(host, port, seconds, anyone).close()
    except ssl.SSLError as error:
        return is_lasting(error) and error.reason not in _NO_TLS
    except OSError:
        return False
    return True


def refusal(host: str, port: int, seconds: float, tls: ssl.SSLContext, *, server_name: str = "") -> str:
    """Return why a server that hangs up on requests refuses us, as it tells who only listens; empty if it does not.

    With TLS 1.3 it looks at our certificate after the handshake, and its word may be lost in the reset of the
    connection that what we sent meanwhile brings about.
    """
    try:
        connection = connect(host, port, seconds, tls, server_name=server_name)
        try:
            if connection.receive_into(memoryview(bytearray(1))) == 0:
                return "it hangs up after the handshake, as servers do that want a client certificate, or another one"
        finally:
            connection.close()
    except ssl.SSLError as error:
        return cause_of(error) if is_lasting(error) else ""
    except OSError:
        pass
    return ""


def is_lasting(error: Exception) -> bool:
    """Whether trying again cannot help: TLS was refused, by us or by the peer."""
    return isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)


def cause_of(error: Exception) -> str:
    """Return what went wrong on a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}{' (it speaks no TLS)' if error.reason in _NO_TLS else ''}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _connected(host: str, port: int, end: float) -> socket.socket:
    failure: OSError = OSError(f"no address of {host} is known")
    addresses = _resolved(host, port, end)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # One that hangs must leave time for the others.
            sock.settimeout(max(end - time.monotonic(), 0.001) / (len(addresses) - number))
            sock.connect(address)
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


def _resolved(host: str, port: int, end: float) -> list[Any]:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)

    # The resolver waits for a name server as long as it pleases, and cannot be stopped.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_remaining_s(end))
    if not found:
        raise TimeoutError(f"the address of {host} is not found in time")
    if isinstance(found[0], OSError):
        raise found[0]
    return list(found[0])


def _remaining_s(end: float) -> float:
    remaining = end - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining
