"""What the benchmarks share: servers as processes, a load generator, and the one line of result.

The load generator is the same for everything that is compared: keep-alive HTTP/1.1
over sockets, one connection per request in flight, requests built before the clock
starts, every response read to its end and checked after the clock stopped.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE: Final = Path(__file__).parent
_PATIENCE_SECONDS: Final = 60
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BUFFER_SIZE: Final = 128 * 1024
_TICKS: Final = os.sysconf("SC_CLK_TCK")


# Result ------------------------------------------------------------------------------


def emit(bench: str, *, ours: object, theirs: object, ratios: object, rounds: int) -> None:
    """Print the one JSON line."""
    line = {"bench": bench, "ours": ours, "theirs": theirs, "ratios": ratios, "rounds": rounds, "machine": _machine()}
    print(json.dumps(line), flush=True)


def _machine() -> dict[str, Any]:
    cpu = next((s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")), "")
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tee": "simulated",
        "load": os.getloadavg()[0],
    }


def middle(values: Iterable[float]) -> float:
    """The median, to three digits or to whole numbers."""
    value = median(values)
    return round(value) if value >= 100 else float(f"{value:.3g}")


# Servers -----------------------------------------------------------------------------


class Server:
    """A server in a process of its own, which prints `serving URL` once it listens."""

    def __init__(self, *command: object) -> None:
        self._command = [sys.executable, *map(str, command)]
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("serving"):
                self.url = line.split()[1]
                return self
        raise RuntimeError(f"it did not start: {self._command}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def port(self) -> int:
        """Where it listens on the loopback interface."""
        return int(self.url.rpartition(":")[2])

    def cpu_seconds(self) -> float:
        """Processor time of the server and everything it started, so far."""
        assert self._process is not None
        parents: dict[int, list[int]] = {}
        used: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
                used[int(entry.name)] = int(fields[11]) + int(fields[12])
        total, left = 0, [self._process.pid]
        while left:
            pid = left.pop()
            total += used.get(pid, 0)
            left += parents.get(pid, [])
        return total / _TICKS


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-made certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "server.crt", directory / "server.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


def trust(certificate_file: Path) -> ssl.SSLContext:
    """A client's TLS 1.3 context that accepts that certificate only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(certificate_file)
    return context


# Load --------------------------------------------------------------------------------


def post(path: str, content_type: str, body: bytes) -> bytes:
    """A whole keep-alive request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def connect(port: int, tls: ssl.SSLContext | None = None) -> socket.socket:
    """A blocking connection that gives up on a silent server."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1024 * 1024)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _PATIENCE_SECONDS, 0))
    if tls is not None:
        sock = tls.wrap_socket(sock, server_hostname="localhost")
    return sock


def response_body(data: bytes) -> bytes | None:
    """The body of a response with status 200; None while it is incomplete."""
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        return None
    if data[9:12] != b"200":
        raise RuntimeError(f"the server answered {data[:400]!r}")
    head += b"\r\n"
    length = _LENGTH.search(head)
    if length is not None:
        size = int(length[1])
        return body if len(body) == size else None
    if not _CHUNKED.search(head):
        raise RuntimeError(f"a response without a length: {head!r}")
    return _unchunk(body) if body.endswith(b"0\r\n\r\n") else None


def _unchunk(body: bytes) -> bytes | None:
    whole = b""
    while True:
        size, found, body = body.partition(b"\r\n")
        if not found or len(body) < int(size, 16) + 2:
            return None
        if int(size, 16) == 0:
            return whole
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]


@cache
def _keep_memory() -> None:
    """Have the C library keep what is freed: fresh pages for every answer cost more than to receive it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**30)
        mallopt(_MMAP_THRESHOLD, 2**24)


class _Inbox:
    """The answer that one connection receives now. A head like the one before is not read again."""

    def __init__(self) -> None:
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._head = b""
        self._size = 0

    def receive(self, sock: socket.socket) -> bytes | None:
        """Take what there is; the body, once the answer is whole. Raises what the socket raises."""
        if self._filled == len(self._buffer):
            self._buffer = self._buffer + bytes(self._filled)
            self._view = memoryview(self._buffer)
        size = sock.recv_into(self._view[self._filled :] if self._filled else self._view)
        if not size:
            raise ConnectionError("the server closed a connection")
        filled = self._filled = self._filled + size
        if self._head and self._buffer.startswith(self._head):
            if filled < self._size:
                return None
            body: bytes | None = bytes(self._view[len(self._head) : filled])
            if filled > self._size:
                raise RuntimeError("the server answered more than one asked")
        else:
            body = self._read(bytes(self._view[:filled]))
        if body is not None:
            self._filled = 0
        return body

    def _read(self, data: bytes) -> bytes | None:
        head, _, _ = data.partition(b"\r\n\r\n")
        body = response_body(data)
        if body is not None and _LENGTH.search(head + b"\r\n"):
            self._head, self._size = head + b"\r\n\r\n", len(data)
        return body


class Stream:
    """What one connection sends, one after the other, and who gets the bodies that come back."""

    def __init__(self, requests: Iterable[bytes], take: Callable[[bytes], object]) -> None:
        self.requests: Iterator[bytes] = iter(requests)
        self.take = take


def in_flight(port: int, streams: list[Stream], tls: ssl.SSLContext | None = None) -> float:
    """Run all streams side by side, a connection each; the seconds from first request to last response."""
    _keep_memory()
    poll = select.epoll()
    connections: dict[int, tuple[socket.socket, Stream, _Inbox]] = {}
    for stream in streams:
        sock = connect(port, tls)
        sock.setblocking(False)
        connections[sock.fileno()] = (sock, stream, _Inbox())
        poll.register(sock.fileno(), select.EPOLLIN)
    began = time.perf_counter()
    for sock, stream, _ in connections.values():
        _send(sock, next(stream.requests))
    left = len(connections)
    while left:
        ready = poll.poll(_PATIENCE_SECONDS)
        if not ready:
            raise TimeoutError("the server does not answer")
        for number, _ in ready:
            sock, stream, inbox = connections[number]
            while True:
                try:
                    body = inbox.receive(sock)
                except (BlockingIOError, ssl.SSLWantReadError):
                    break
                if body is None:
                    continue
                stream.take(body)
                request = next(stream.requests, None)
                if request is None:
                    left -= 1
                else:
                    _send(sock, request)
                break
    seconds = time.perf_counter() - began
    for sock, _, _ in connections.values():
        sock.close()
    poll.close()
    return seconds


def _send(sock: socket.socket, data: bytes) -> None:
    """All of it: TLS takes one record at a time, a full buffer none."""
    sent = 0
    while sent < len(data):
        try:
            sent += sock.send(data[sent:] if sent else data)
        except (BlockingIOError, ssl.SSLWantWriteError):
            select.select([], [sock], [], _PATIENCE_SECONDS)


def one_by_one(port: int, stream: Stream, tls: ssl.SSLContext | None = None) -> list[float]:
    """Run one stream over one connection; the seconds each request took, preparing it and taking its body included."""
    times: list[float] = []
    with connect(port, tls) as sock:
        sendall, clock, inbox = sock.sendall, time.perf_counter, _Inbox()
        while True:
            began = clock()
            request = next(stream.requests, None)
            if request is None:
                return times
            sendall(request)
            while (body := inbox.receive(sock)) is None:
                pass
            stream.take(body)
            times.append(clock() - began)
