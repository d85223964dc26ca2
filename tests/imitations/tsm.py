"""configfs-tsm as the kernel does it, without a kernel.

What is imitated, from the kernel's source (guest/report.c, sev-guest, tdx-guest, configfs):
attributes appear with mkdir; binary attributes are buffered and taken when the file
is closed, and what goes wrong then nobody is told; text attributes are taken at the
write; the first read makes the report, later reads give the same until something is
written; a generation counts writes; no provider, no entry.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import struct
import threading
from collections.abc import Callable
from typing import Any, Protocol

from conclave.errors import PlatformError

INBLOB_MAX = 64
OUTBLOB_MAX = 32 * 1024
SIZE = 64


def refuse(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Handle(Protocol):
    """An open file."""

    def read(self, offset: int, size: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> int: ...
    def close(self) -> None: ...


class Entry:
    """One report instance."""

    def __init__(self) -> None:
        self.inblob = b""
        self.privlevel = 0
        self.write_generation = 0
        self.read_generation = 0
        self.outblob: bytes | None = None
        self.auxblob = b""


class Text:
    """A text attribute: shown at the first read, taken at each write."""

    def __init__(self, show: Callable[[], str] | None, store: Callable[[bytes], None] | None) -> None:
        self._show, self._store = show, store
        self._shown: bytes | None = None

    def read(self, offset: int, size: int) -> bytes:
        if self._show is None:
            raise refuse(errno.EACCES)
        if self._shown is None:
            self._shown = self._show().encode()
        return self._shown[offset : offset + size]

    def write(self, offset: int, data: bytes) -> int:
        if self._store is None:
            raise refuse(errno.EACCES)
        self._store(data)
        return len(data)

    def close(self) -> None:
        pass


class Binary:
    """A binary attribute: made whole at the first read, or gathered and taken at close."""

    def __init__(self, load: Callable[[], bytes] | None, take: Callable[[bytes], None] | None) -> None:
        self._load, self._take = load, take
        self._loaded: bytes | None = None
        self._written = bytearray()

    def read(self, offset: int, size: int) -> bytes:
        if self._load is None:
            raise refuse(errno.EACCES)
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded[offset : offset + size]

    def write(self, offset: int, data: bytes) -> int:
        if self._take is None:
            raise refuse(errno.EACCES)
        if offset + len(data) > INBLOB_MAX:
            raise refuse(errno.EFBIG)
        self._written[offset : offset + len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._take is not None and self._written:
            self._take(bytes(self._written))
            self._written.clear()


class Tsm:
    """The directory `report` and the provider behind it.

    Attributes:
        faults: error numbers of the next reports; None makes one.
        intruder: called when a report is about to be read, with its entry, like another
            process that knows its name.
        reports: how many were made.
    """

    def __init__(self, processor: Any, *, provider: str | None = None, floor: int = 0) -> None:
        self.processor = processor
        self.provider = {"snp": "sev_guest", "tdx": "tdx_guest"}.get(processor.kind) if provider is None else provider
        self.floor = floor
        self.entries: dict[str, Entry] = {}
        self.faults: list[int | None] = []
        self.intruder: Callable[[Entry], None] = lambda entry: None
        self.table: bytes | None = None
        self.reports = 0
        self._lock = threading.RLock()

    # The file system ---------------------------------------------------------------------

    def names(self) -> list[str]:
        return list(self.entries)

    def mkdir(self, name: str) -> None:
        with self._lock:
            if not self.provider:
                raise refuse(errno.ENXIO)
            if name in self.entries:
                raise refuse(errno.EEXIST)
            self.entries[name] = Entry()

    def rmdir(self, name: str) -> None:
        with self._lock:
            self._entry(name)
            del self.entries[name]

    def attributes(self, name: str) -> dict[str, int]:
        """Names and modes."""
        self._entry(name)
        found = {"generation": 0o444, "provider": 0o444, "inblob": 0o200, "outblob": 0o400}
        if self.processor.kind == "snp":
            found |= {"privlevel": 0o200, "privlevel_floor": 0o444, "auxblob": 0o400}
        return found

    def open(self, name: str, attribute: str, *, writing: bool) -> Handle:
        entry = self._entry(name)
        mode = self.attributes(name).get(attribute)
        if mode is None:
            raise refuse(errno.ENOENT)
        # Also for root: configfs looks at the mode itself.
        if not mode & (0o222 if writing else 0o444):
            raise refuse(errno.EACCES)
        match attribute:
            case "generation":
                return Text(lambda: f"{entry.write_generation}\n", None)
            case "provider":
                return Text(lambda: f"{self.provider}\n", None)
            case "privlevel_floor":
                return Text(lambda: f"{self.floor}\n", None)
            case "privlevel":
                return Text(None, lambda data: self._level(entry, data))
            case "inblob":
                return Binary(None, lambda data: self._in(entry, data))
            case "outblob":
                return Binary(lambda: self._out(entry)[0], None)
        return Binary(lambda: self._out(entry)[1], None)

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            raise refuse(errno.ENOENT)
        return entry

    # The provider ------------------------------------------------------------------------

    def _level(self, entry: Entry, data: bytes) -> None:
        try:
            level = int(data.decode(), 0)
        except ValueError:
            raise refuse(errno.EINVAL) from None
        if not self.floor <= level <= 3:
            raise refuse(errno.EINVAL)
        with self._lock:
            entry.write_generation += 1
            entry.privlevel = level

    def _in(self, entry: Entry, data: bytes) -> None:
        with self._lock:
            entry.write_generation += 1
            entry.inblob = data

    def _out(self, entry: Entry) -> tuple[bytes, bytes]:
        with self._lock:
            self.intruder(entry)
            if not entry.inblob:
                raise refuse(errno.EINVAL)
            if entry.outblob is None or entry.read_generation != entry.write_generation:
                self._make(entry)
            assert entry.outblob is not None
            return entry.outblob, entry.auxblob

    def _make(self, entry: Entry) -> None:
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            raise refuse(fault)
        if len(entry.inblob) != SIZE:
            raise refuse(errno.EINVAL)
        if self.processor.kind == "snp":
            self.processor.vmpl = entry.privlevel
        built = self.processor.evidence(entry.inblob)
        entry.outblob = built.raw
        entry.auxblob = b""
        if self.processor.kind == "snp":
            entry.auxblob = table_of(built) if self.table is None else self.table
        entry.read_generation = entry.write_generation
        self.reports += 1


GUIDS = {
    "vcek": "63da758de6644564adc5f4b93be8accd",
    "vlek": "a8074bc2a25a483eaae639c045a0b8a1",
    "ask": "4ab7b379bbac4fe4a02f05aef327c782",
    "ark": "c0b406a4a803495297433fb6014cd0ae",
    "crl": "92f81bc358114d3d97ffd19f88dc67ea",
}


def table(parts: dict[str, bytes], *, gap: int = 0) -> bytes:
    """A certificate table: entries, a zero entry, the parts behind it."""
    at = 24 * (len(parts) + 1) + gap
    entries, body = b"", bytes(gap)
    for name, part in parts.items():
        entries += bytes.fromhex(GUIDS.get(name, name)) + struct.pack("<II", at + len(body) - gap, len(part))
        body += part
    return entries + bytes(24) + body


def table_of(built: Any) -> bytes:
    """What a host that has everything gives along."""
    members = json.loads(built.endorsements)
    ask, ark = (base64.b64decode(text) for text in re.findall(r"N CERTIFICATE-----(.*?)-----E", members["chain"], re.S))
    leaf = "vcek" if built.raw[0x48] & 0x1C == 0 else "vlek"
    parts = {leaf: bytes.fromhex(members["certificate"]), "ask": ask, "ark": ark}
    if members["crl"]:
        parts["crl"] = bytes.fromhex(members["crl"])
    return table(parts)


class Memory:
    """The drivers' files over an imitation, without a mount. Like FUSE, in steps of a page."""

    def __init__(self, part: Any) -> None:
        self._part = part

    def mkdir(self, path: str) -> None:
        self._part.mkdir(path)

    def rmdir(self, path: str) -> None:
        self._part.rmdir(path)

    def read(self, path: str, most: int) -> bytes:
        handle = self._open(path, writing=False)
        data = b""
        while more := handle.read(len(data), 4096):
            data += more
        handle.close()
        if len(data) > most:
            raise PlatformError("too many bytes")
        return data

    def write(self, path: str, data: bytes) -> None:
        handle = self._open(path, writing=True)
        handle.write(0, data)
        handle.close()

    def _open(self, path: str, *, writing: bool) -> Handle:
        if isinstance(self._part, Tsm):
            name, _, attribute = path.partition("/")
            return self._part.open(name, attribute, writing=writing)
        opened: Handle = self._part.open(path, writing=writing)
        return opened
