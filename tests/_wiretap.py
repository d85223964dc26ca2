"""What a network between client and host sees: a TCP relay that records, and HTTP read from its records."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Wire:
    sent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Message:
    """One HTTP message: its head without what tells the time, its body, and how it was cut."""

    head: str
    body: bytes
    chunks: tuple[int, ...]

    @property
    def shape(self) -> tuple[str, int, tuple[int, ...]]:
        """All that an observer sees who cannot decrypt."""
        return self.head, len(self.body), self.chunks


@dataclass(frozen=True, slots=True)
class Recorded:
    """One HTTP exchange."""

    request: Message
    answer: Message

    @property
    def shape(self) -> tuple[object, object]:
        """The shapes of both messages."""
        return self.request.shape, self.answer.shape


class Wiretap:
    """Relays connections to one address, and keeps every byte."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._to = (host, int(port))
        self._wires: list[_Wire] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            wire = _Wire()
            self._wires.append(wire)
            server = socket.create_connection(self._to)
            for source, target, record in ((client, server, wire.sent), (server, client, wire.received)):
                threading.Thread(target=_pump, args=(source, target, record), daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def mails(self) -> list[Recorded]:
        """The exchanges with mails so far, connection by connection."""
        found = []
        for wire in list(self._wires):
            for request, answer in zip(_messages(bytes(wire.sent)), _messages(bytes(wire.received)), strict=False):
                if request.head.startswith("POST /mail "):
                    found.append(Recorded(request, answer))
        return found


@contextmanager
def wiretap(url: str) -> Iterator[Wiretap]:
    """A relay to that host, until the block ends."""
    tap = Wiretap(url)
    try:
        yield tap
    finally:
        tap.close()


def _pump(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    try:
        while data := source.recv(65536):
            record += data
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        target.close()


def _messages(stream: bytes) -> Iterator[Message]:
    while b"\r\n\r\n" in stream:
        head, _, stream = stream.partition(b"\r\n\r\n")
        text = head.decode("latin-1")
        body, chunks, stream = _body(text, stream)
        # Addresses and times differ from one connection and second to the next.
        yield Message(re.sub(r"(?im)^(date|host): .*$", r"\1", text), body, chunks)


def _body(head: str, stream: bytes) -> tuple[bytes, tuple[int, ...], bytes]:
    length = re.search(r"(?im)^content-length: (\d+)\r?$", head)
    if length:
        size = int(length[1])
        return stream[:size], (), stream[size:]
    body, chunks = b"", []
    if re.search(r"(?im)^transfer-encoding: chunked", head):
        while True:
            line, _, stream = stream.partition(b"\r\n")
            size = int(line or b"0", 16)
            body, stream = body + stream[:size], stream[size + 2 :]
            chunks.append(size)
            if not size:
                break
    return body, tuple(chunks), stream
