"""Starts the simulated platform, and is it.

`start_platform` runs in the untrusted host: it gets a process and a byte stream.
`main` is that process: it measures the bundle, launches the enclave in the
sandbox, quotes and seals for it, and reports on its standard output.

Spec: spec/host-channel.md sections 3 and 4.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from conclave import _codec
from conclave._framing import FrameReader, PlatformKind, pack
from conclave.errors import BundleError, Error, FormatError, PlatformError

_MAX_REQUEST: Final = 4096
_MAX_OUTPUT: Final = 16 * 1024 * 1024
_READ_SIZE: Final = 65536
_CHANNEL_BUFFER: Final = 2 * 1024 * 1024
_MAX_CONTEXT: Final = 256
_LEVEL_SIZE: Final = 2


@dataclass(frozen=True, slots=True)
class Launched:
    """What the host gets: the platform's process and its end of the host channel."""

    process: subprocess.Popen[bytes]
    channel: socket.socket


def start_platform(
    directory: Path, bundle: Path, *, sandbox: str = "auto", environment: Sequence[str] = ()
) -> Launched:
    """Start the platform process with one bundle; it reports on its standard output.

    Args:
        directory: the simulated machine, made if it does not exist.
        bundle: a bundle file. Untrusted.
        sandbox: `auto`, `namespaces` or `landlock`.
        environment: `NAME=VALUE` the host would like the enclave to see. The
            platform refuses all: nothing unmeasured reaches an enclave.
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        # As much as the kernel allows of it: with its usual 208 KiB, a batch of a stream's chunks takes three turns.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHANNEL_BUFFER)
    command = [sys.executable, "-I", "-m", "conclave.platform", str(directory), str(bundle), sandbox]
    command += [str(theirs.fileno()), *environment]
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(theirs.fileno(),), start_new_session=True
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Launched(process, ours)


def main() -> None:
    """The platform process: DIRECTORY BUNDLE SANDBOX FD [NAME=VALUE ...]."""
    directory, bundle, sandbox, channel, *environment = sys.argv[1:]
    try:
        if environment:
            names = ", ".join(sorted(e.partition("=")[0][:64] for e in environment))
            raise PlatformError(
                f"environment variables for the enclave are refused, because nobody measured them: {names}; "
                "declare them in the bundle ([tool.conclave] environment)"
            )
        platform = _Platform(Path(directory), Path(bundle), sandbox, int(channel))
    except Error as error:
        _refuse(error.code, str(error))
    except OSError as error:
        _refuse("platform", f"{error.strerror}: {error.filename}")
    platform.serve()


def _report(event: str, **facts: Any) -> None:
    line = json.dumps({"event": event, **facts}) + "\n"
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody listens: the host is gone, and with it this platform's work.
        os._exit(0)


def _refuse(code: str, message: str) -> NoReturn:
    _report("refused", code=code, message=message)
    os._exit(1)


class _Stopped(BaseException):
    """Somebody asked this process to stop."""


def _stop(number: int, frame: object) -> NoReturn:
    raise _Stopped


class _Platform:
    """One launched enclave and what the processor does for it."""

    def __init__(self, directory: Path, path: Path, sandbox: str, channel: int) -> None:
        from conclave.bundle.archive import read_bundle, unpack
        from conclave.platform import shelf
        from conclave.platform.machine import Machine
        from conclave.platform.tree import runtime_tree

        # 1. Measure: bundle and runtime.
        self._machine = Machine.open(directory)
        self._bundle = bundle = read_bundle(path)
        _check_tags(bundle.manifest.python, bundle.manifest.platform)
        self._tree = runtime_tree(held=True, on_progress=lambda text: _report("progress", text=text))
        # 2. Lay the bundle out.
        kept = directory / "bundles" / (bundle.code + bundle.signer).hex()
        shelf.hold(kept, lambda place: place.mkdir(parents=True, exist_ok=True))
        if not (kept / "bundle").exists():
            unpack(bundle, kept / "bundle")
        shelf.prune(kept.parent)
        # 3. Launch.
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._output, output = os.pipe()
        self._channel, enclave_end = socket.socketpair()
        self.sandbox, self._child = self._launch(
            directory, kept / "bundle", sandbox, output, channel, enclave_end.fileno()
        )
        os.close(output)
        os.close(channel)
        enclave_end.close()
        # The driver asks and waits. Who asks and does not read shall not make the platform wait.
        self._channel.setblocking(False)
        self._reader = FrameReader(PlatformKind, max_payload=_MAX_REQUEST)
        self._running = False
        self._printed = bytearray()
        self._relayed = 0
        self._published = self._machine.endorsements()
        _report(
            "launched",
            bundle_id=bundle.bundle_id.hex(),
            code=bundle.code.hex(),
            signer=bundle.signer.hex(),
            product_id=bundle.manifest.product_id,
            revocation_level=bundle.manifest.revocation_level,
            mode=bundle.manifest.mode,
            mrenclave=self._tree.measurement.hex(),
            anchor=self._machine.anchor,
            sandbox=self.sandbox,
            endorsements=self._published.hex(),
        )

    def _launch(self, directory: Path, bundle: Path, mode: str, output: int, channel: int, own: int) -> tuple[str, int]:
        from conclave.platform.sandbox import MODES, ROOT, Place, SandboxError, launch
        from conclave.platform.tree import bootstrap_command

        if mode not in ("auto", *MODES):
            raise PlatformError(f"sandbox is auto, {' or '.join(MODES)}")
        limits = self._bundle.manifest.limits
        nothing, end = os.pipe()
        os.close(end)
        reasons = []
        for candidate in MODES if mode == "auto" else (mode,):
            place = Place(
                root=str(self._tree.root),
                command=tuple(bootstrap_command(ROOT)),
                bundle=self._stage(directory, bundle, candidate),
                memory_mib=limits.memory_mib,
                temporary_mib=limits.temporary_mib,
            )
            try:
                child = launch(place, candidate, (nothing, output, output, channel, own))
            except SandboxError as error:
                reasons.append(f"{candidate}: {error}")
                continue
            os.close(nothing)
            return candidate, child
        raise PlatformError("the kernel refuses to isolate the enclave (" + "; ".join(reasons) + ")")

    def _stage(self, directory: Path, bundle: Path, mode: str) -> str:
        """Where the bundle lies beside a `tmp`: the bootstrap finds that by its side."""
        if mode == "namespaces":
            return str(bundle)
        from conclave.platform import shelf

        for left in (*directory.glob("enclave-*"), *directory.glob(".gone-*")):
            shelf.remove_unless_held(left)
        self._temporary = tempfile.TemporaryDirectory(prefix="enclave-", dir=directory)
        stage = Path(self._temporary.name)
        # Another platform of this machine may have taken it for one that was left.
        shelf.hold(stage, lambda place: place.mkdir(mode=0o700))
        (stage / "tmp").mkdir(mode=0o700, exist_ok=True)
        # A real directory, not a link: the working directory's parent is the stage.
        shutil.copytree(bundle, stage / "bundle", copy_function=os.link, dirs_exist_ok=True)
        return str(stage / "bundle")

    def serve(self) -> None:
        """Answer the enclave until it, or the host, is gone."""
        watch = selectors.DefaultSelector()
        child = os.pidfd_open(self._child)
        watch.register(self._channel, selectors.EVENT_READ, self._asked)
        watch.register(self._output, selectors.EVENT_READ, self._drain)
        watch.register(child, selectors.EVENT_READ, None)
        watch.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        # Asked to stop, by its host or a person, it takes the enclave with it.
        signal.signal(signal.SIGTERM, _stop)
        with contextlib.suppress(_Stopped):
            self._watch(watch)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        _, status = os.waitpid(self._child, 0)
        os.set_blocking(self._output, False)
        while self._drain():
            pass
        if self._temporary is not None:
            self._temporary.cleanup()
        if not self._running and self._printed:
            # Nothing but our own bootstrap has run: its words are safe to pass on.
            _refuse("platform", self._printed.decode("utf-8", "replace").strip()[-2000:])
        _report("exited", status=os.waitstatus_to_exitcode(status))

    @staticmethod
    def _watch(watch: selectors.BaseSelector) -> None:
        while True:
            for key, _ in watch.select():
                if key.data is None:
                    return
                if not key.data():
                    watch.unregister(key.fileobj)

    def _drain(self) -> bool:
        try:
            data = os.read(self._output, _READ_SIZE)
        except BlockingIOError:
            return False
        if not data:
            return False
        if not self._running and len(self._printed) < _READ_SIZE:
            self._printed += data
        elif self._bundle.manifest.mode == "debug" and self._relayed < _MAX_OUTPUT:
            self._relayed += len(data)
            _report("output", text=data.decode("utf-8", "replace"))
        return True

    def _asked(self) -> bool:
        try:
            data = self._channel.recv(_READ_SIZE)
            for frame in self._reader.feed(data):
                self._channel.sendall(self._answer(PlatformKind(frame.kind), frame.request, frame.payload))
        except (FormatError, OSError):
            # The enclave speaks another protocol or does not listen; it gets nothing more.
            self._channel.close()
            return False
        return bool(data)

    def _answer(self, kind: PlatformKind, request: int, payload: bytes) -> bytes:
        bundle = self._bundle
        try:
            if kind is PlatformKind.IDENTITY:
                self._running = True
                facts = {"tee": "simulated", "bundle_id": bundle.bundle_id, "sandbox": self.sandbox}
                return pack(PlatformKind.IDENTITY_IS, request, _codec.encode(facts))
            if kind is PlatformKind.EVIDENCE and len(payload) == 64:
                self._machine.reissue(datetime.now(UTC))
                if (published := self._machine.endorsements()) != self._published:
                    self._published = published
                    _report("endorsements", endorsements=published.hex())
                quote = self._machine.quote(
                    report_data=payload,
                    config_id=bundle.bundle_id + bytes(32),
                    mrenclave=self._tree.measurement,
                )
                return pack(PlatformKind.EVIDENCE_IS, request, quote)
            if kind is PlatformKind.SEALING_KEY:
                policy, _, rest = payload.partition(b"\0")
                if len(rest) < _LEVEL_SIZE:
                    raise PlatformError("a request for a sealing key names a policy and a revocation level")
                level, context = int.from_bytes(rest[:_LEVEL_SIZE], "big"), rest[_LEVEL_SIZE:]
                if len(context) > _MAX_CONTEXT:
                    raise PlatformError(f"the context of a sealing key has at most {_MAX_CONTEXT} bytes")
                key = self._machine.sealing_key(
                    policy.decode("ascii", "replace"),
                    code=bundle.code,
                    signer=bundle.signer,
                    product_id=bundle.manifest.product_id,
                    revocation_level=bundle.manifest.revocation_level,
                    context=context,
                    level=level,
                )
                return pack(PlatformKind.SEALING_KEY_IS, request, key)
        except Error as error:
            return pack(PlatformKind.REFUSED, request, str(error).encode())
        return pack(PlatformKind.REFUSED, request, b"not a request of the platform channel")


def _check_tags(python: str, platform: str) -> None:
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if python != here:
        raise BundleError(
            f"the bundle is for Python {python}, this runtime is {here}; build it with the other, or here"
        )
    if platform not in ("any", "x86_64-linux"):
        raise BundleError(f"the bundle is for the platform {platform[:64]!r}, this is x86_64-linux")
