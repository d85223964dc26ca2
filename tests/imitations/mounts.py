"""One imitated machine as a mounted file system: `dev` and `sys` below a directory.

The file system runs in a process of its own, so that the kernel's calls into it never
wait for the process that made them. Needs /dev/fuse, the right to mount, and libfuse
with mfusepy; `why_not` says what is missing.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.imitations.gramine import Attestation, Registers
from tests.imitations.tsm import Handle, Tsm, refuse

from conclave.enclave.drivers import gramine, tsm

_CAP_SYS_ADMIN = 21
_HELPERS = ("/bin/fusermount3", "/usr/bin/fusermount3")

# Parts by the directory they are mounted at.
Parts = dict[str, Any]


@cache
def why_not() -> str:
    """Why nothing can be mounted here, or nothing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no /dev/fuse, or it may not be opened"
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError) as error:
        return f"FUSE: {error}"
    if os.geteuid() == 0:
        status = Path("/proc/self/status").read_text()
        if not int(status.partition("CapEff:")[2].split()[0], 16) >> _CAP_SYS_ADMIN & 1:
            return "root may not mount here (no CAP_SYS_ADMIN)"
    elif not any(os.stat(p).st_mode & stat.S_ISUID for p in _HELPERS if os.path.exists(p)):
        return "fusermount3 is missing (package fuse3), or is not setuid"
    return ""


def sgx_parts(processor: Any, **options: Any) -> Parts:
    return {gramine.PLACE: Attestation(processor, **options)}


def tsm_parts(processor: Any, **options: Any) -> Parts:
    parts: Parts = {tsm.PLACE: Tsm(processor, **options)}
    if processor.kind == "tdx":
        parts[tsm.REGISTERS] = Registers(processor)
    return parts


class Machine:
    """A mounted machine: its directory, and a line to what is behind it."""

    def __init__(self, root: Path, connection: Connection) -> None:
        self.root = root
        self._connection = connection

    def get(self, part: str, name: str) -> Any:
        """An attribute of a part, dotted."""
        return self._ask("get", part, name, None)

    def set(self, part: str, name: str, value: Any) -> None:
        """Set an attribute of a part, dotted."""
        self._ask("set", part, name, value)

    def call(self, part: str, name: str, *arguments: Any) -> Any:
        """Call a method of a part."""
        return self._ask("call", part, name, arguments)

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        if not self._connection.poll(30):
            raise TimeoutError("the imitation does not answer")
        return self._connection.recv()


@contextmanager
def mounted(root: Path, make: Callable[..., Parts], *arguments: Any, **options: Any) -> Iterator[Machine]:
    """Mount what `make` makes (in the other process) at a directory, until the block ends."""
    root.mkdir(parents=True, exist_ok=True)
    # One process loads what all of them need; each is a fork of it, not of the tests.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.imitations.processor", "mfusepy"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(root), theirs, make, arguments, options), daemon=True)
    process.start()
    theirs.close()
    try:
        deadline = time.monotonic() + 30
        while not os.path.ismount(root):
            if not process.is_alive() or time.monotonic() > deadline:
                raise OSError(errno.EIO, "the imitation could not be mounted")
            time.sleep(0.005)
        yield Machine(root, ours)
    finally:
        command = ["umount", str(root)] if os.geteuid() == 0 else ["fusermount3", "-u", str(root)]
        subprocess.run(command, check=False, capture_output=True)
        process.join(10)
        if process.is_alive():
            process.kill()
        ours.close()


def _serve(
    root: str, connection: Connection, make: Callable[..., Parts], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    import mfusepy

    parts = make(*arguments, **options)
    threading.Thread(target=_answer, args=(connection, parts), daemon=True).start()
    mfusepy.FUSE(
        _operations(parts), root, raw_fi=True, foreground=True, nothreads=True, attr_timeout=0, entry_timeout=0
    )
    sys.exit()


def _answer(connection: Connection, parts: Parts) -> None:
    while True:
        try:
            verb, part, name, value = connection.recv()
        except EOFError:
            return
        found = parts[part]
        *path, last = name.split(".")
        for step in path:
            found = getattr(found, step)
        if verb == "set":
            setattr(found, last, value)
            connection.send(None)
        else:
            found = getattr(found, last)
            connection.send(found(*value) if verb == "call" else found)


def _operations(parts: Parts) -> Any:
    import mfusepy

    folders = {"/"}
    for place in parts:
        steps = place.split("/")
        folders |= {"/" + "/".join(steps[: n + 1]) for n in range(len(steps))}
    handles: dict[int, Handle] = {}
    numbers = iter(range(1, 1 << 60))

    def split(path: str) -> tuple[Any, str]:
        """The part a path lies in, and what remains of the path."""
        for place, part in parts.items():
            if path == f"/{place}" or path.startswith(f"/{place}/"):
                return part, path[len(place) + 2 :]
        raise refuse(errno.ENOENT)

    def mode(path: str) -> int:
        if path in folders:
            return stat.S_IFDIR | 0o755
        part, rest = split(path)
        if isinstance(part, Tsm):
            name, _, attribute = rest.partition("/")
            attributes = part.attributes(name)
            if not attribute:
                return stat.S_IFDIR | 0o755
            if attribute not in attributes:
                raise refuse(errno.ENOENT)
            return stat.S_IFREG | attributes[attribute]
        files: dict[str, int] = part.files()
        if any(name.startswith(f"{rest}/") for name in files):
            return stat.S_IFDIR | 0o755
        if rest not in files:
            raise refuse(errno.ENOENT)
        return stat.S_IFREG | files[rest]

    class Operations(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            found = mode(path)
            owner = {"st_uid": os.getuid(), "st_gid": os.getgid()}
            return {"st_mode": found, "st_nlink": 2 if stat.S_ISDIR(found) else 1, "st_size": 4096, **owner}

        def readdir(self, path: str, fh: Any) -> list[str]:
            below = {f.removeprefix(path).lstrip("/").partition("/")[0] for f in folders if f.startswith(path)}
            with_parts = below - {""}
            if not with_parts:
                part, rest = split(path)
                if isinstance(part, Tsm):
                    with_parts = set(part.attributes(rest)) if rest else set(part.names())
                else:
                    names = (n for n in part.files() if n.startswith(rest))
                    with_parts = {n.removeprefix(rest).lstrip("/").partition("/")[0] for n in names}
            return [".", "..", *sorted(with_parts)]

        def mkdir(self, path: str, mode: int) -> int:
            part, rest = split(path)
            if not isinstance(part, Tsm) or "/" in rest:
                raise refuse(errno.EPERM)
            part.mkdir(rest)
            return 0

        def rmdir(self, path: str) -> int:
            part, rest = split(path)
            if not isinstance(part, Tsm):
                raise refuse(errno.EPERM)
            # The kernel lets an entry go although it "contains" files.
            part.rmdir(rest)
            return 0

        def open(self, path: str, fi: Any) -> int:
            part, rest = split(path)
            writing = fi.flags & os.O_ACCMODE != os.O_RDONLY
            where = rest.rpartition("/") if isinstance(part, Tsm) else None
            opened = part.open(where[0], where[2], writing=writing) if where else part.open(rest, writing=writing)
            fi.fh, fi.direct_io = next(numbers), 1
            handles[fi.fh] = opened
            return 0

        def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
            return handles[fi.fh].read(offset, size)

        def write(self, path: str, data: bytes, offset: int, fi: Any) -> int:
            return handles[fi.fh].write(offset, data)

        def flush(self, path: str, fi: Any) -> int:
            # close(2) waits for this one; `release` comes some time after it.
            handles[fi.fh].close()
            return 0

        def release(self, path: str, fi: Any) -> int:
            handles.pop(fi.fh, None)
            return 0

    return Operations()
