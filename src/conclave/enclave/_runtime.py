"""Start-up of an enclave and its loop over the host channel.

Runs inside the enclave, after the sandbox is closed. Nothing unmeasured is used:
the bundle's manifest decides environment, entry and mode, and the TEE must name
the same bundle before any author code runs.

Spec: spec/claims.md section 2 (CLM-2), spec/host-channel.md section 4 (BOOT-1 to BOOT-3).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import conclave
from conclave import __version__, _crypto
from conclave._chunkheader import MAX_UPLOAD
from conclave._crypto import SUITE_ID
from conclave._framing import HEADER, FrameReader, Kind, head, pack
from conclave._memory import keep_memory
from conclave.attestation.claims import InstanceClaims
from conclave.bundle.manifest import Manifest, check_files, parse_manifest
from conclave.enclave import _sandbox
from conclave.enclave._service import Service
from conclave.enclave.drivers import Mounted, Tee
from conclave.enclave.drivers.simulated import SimulatedTee
from conclave.enclave.sdk import Enclave
from conclave.errors import BundleError, Error, FormatError, StateError
from conclave.rpc.interface import Interface, interface_digest, interface_of

if TYPE_CHECKING:
    from conclave.enclave._loading import Loaded

RUNTIME_RELEASE: Final = f"conclave-{__version__}"
HOST_FD: Final = 3
# As large as a whole frame of chunks: a buffer that has to grow for it costs as much as the decryption.
_READ_SIZE: Final = HEADER.size + MAX_UPLOAD
_MAX_UNSENT: Final = 64 * 1024 * 1024
# So many frames go out at once: the host goes on with them while we go on with the rest.
_BATCH: Final = 32
_BATCH_SIZE: Final = 128 * 1024
# The kernel takes 1024 pieces at once.
_PARTS: Final = 512
_KEPT_MIB: Final = 8
# Of an enclave that does not start: how long it reads what a host still sends, and for what pause it takes it as over.
_LINGER_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.03


class StartError(Error):
    """Start-up refused; the message is our own and safe for the host."""

    code = "start"


# A release tells nobody what happens in it.
_WHY: Final = "`conclave run FILE` shows why"
# Whose files may lie on a disk of the host's. Gramine checks each file as it is read.
_GUESTS: Final = ("snp", "tdx", "nitro")
# Closes the sandbox but for the places named; returns the word for the claims.
Close = Callable[[Sequence[str]], str]


def main(find: Callable[[], Tee], close: Close | None = None) -> None:
    """Run one boot. Called by the bootstrap; returns when the host is done.

    Args:
        find: gives the TEE that this machine offers.
        close: closes the sandbox, where that was not done before.
    """
    channel = socket.socket(fileno=HOST_FD)
    try:
        start = _prepare(Path.cwd(), find(), close)
        loaded = start.load(channel)
    except Error as error:
        _send_failed(channel, str(error))
        raise SystemExit(78) from None
    asyncio.run(_serve(channel, start, loaded))


def _send_failed(channel: socket.socket, text: str) -> None:
    channel.sendall(pack(Kind.FAILED, 0, text.encode()[:4096]))
    # A socket that is closed before all of it was read takes back what it sent last.
    channel.settimeout(_PAUSE_SECONDS)
    until = time.monotonic() + _LINGER_SECONDS
    with suppress(OSError):
        while channel.recv(_READ_SIZE) and time.monotonic() < until:
            pass


class _Start:
    """Everything about this boot that is known before its keys exist."""

    def __init__(
        self,
        manifest: Manifest,
        mounted: Mounted,
        sandbox: str,
        tee: Tee,
        cls: type[Enclave],
        interface: Interface,
    ) -> None:
        self.manifest = manifest
        self.mounted = mounted
        self.sandbox = sandbox
        self.tee = tee
        self.cls = cls
        self.interface = interface
        self.boot_nonce = _crypto.random_bytes(32)
        self._log_id: bytes | None = None

    def load(self, channel: socket.socket) -> Loaded | None:
        """The state, if the class keeps one. Raises StateError, UnsupportedPolicy."""
        if self.cls.persistence is None:
            return None
        # Loaded where state persists, and nowhere else.
        from conclave.enclave._loading import load

        loaded = load(channel, self.tee, self.mounted, self.cls.persistence)
        self._log_id = loaded.log.log_id
        return loaded

    def claims(self, encryption_key: bytes, signing_key: bytes) -> InstanceClaims:
        """Claims of this boot for one pair of keys."""
        manifest, mounted = self.manifest, self.mounted
        return InstanceClaims(
            version=1,
            bundle_id=mounted.bundle_id,
            code=mounted.code,
            signer=mounted.signer,
            product_id=mounted.product_id,
            revocation_level=mounted.revocation_level,
            runtime=RUNTIME_RELEASE,
            sandbox=self.sandbox,
            mode=manifest.mode,
            suite=SUITE_ID,
            encryption_key=encryption_key,
            signing_key=signing_key,
            boot_nonce=self.boot_nonce,
            log_id=self._log_id,
            kds_constraint=None,
            interface=interface_digest(manifest.interface),
        )


def _prepare(bundle: Path, tee: Tee, close: Close | None) -> _Start:
    # 1. What lies here.
    manifest_bytes = (bundle / "manifest").read_bytes()
    manifest = parse_manifest(manifest_bytes)
    mounted = Mounted(
        code=_crypto.sha256(manifest_bytes),
        signer=_signer(bundle, manifest_bytes),
        product_id=manifest.product_id,
        revocation_level=manifest.revocation_level,
    )
    # 2. The TEE names the same bundle.
    identity = tee.identity(mounted)
    if not _crypto.same(mounted.bundle_id, identity.bundle_id):
        raise StartError("the TEE names another bundle than the one that was mounted")
    if close is not None and tee.kind in _GUESTS and not _sandbox.in_memory(str(bundle)):
        raise StartError("the bundle lies where the host can change it after it was checked; copy it to a tmpfs")
    # On hardware the host laid the bundle out, and nobody measured more than the manifest.
    check_files(bundle, manifest, contents=tee.kind != SimulatedTee.kind)
    # 3. Author code shall reach nothing but its own.
    sandbox = identity.sandbox
    if close is not None and tee.places is not None:
        sandbox = close(tee.places)
    tee.check_closed()
    # 4. The measured environment, then author code.
    os.environ.update(dict(manifest.environment))
    if manifest.mode == "debug":
        _print_by_lines()
    sys.path += [str(bundle / "site"), str(bundle / "app")]
    cls = _load(manifest)
    interface = interface_of(cls)
    if interface.encode() != manifest.interface:
        raise StartError("the class has another interface than the manifest says; build the bundle again")
    return _Start(manifest, mounted, sandbox, tee, cls, interface)


def _print_by_lines() -> None:
    """What the author prints is seen while it is of use, and whatever becomes of this process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def _signer(bundle: Path, manifest: bytes) -> bytes:
    path = bundle / "signature"
    if not path.exists():
        return bytes(32)
    signature = path.read_bytes()
    if len(signature) != 96:
        raise BundleError("the bundle's signature file has another size than 96 bytes")
    public = signature[:32]
    _crypto.verify_signature(public, "bundle", _crypto.ZERO_DIGEST, manifest, signature[32:])
    return _crypto.sha256(public)


def _load(manifest: Manifest) -> type[Enclave]:
    module_name, _, name = manifest.entry.partition(":")
    try:
        entry = getattr(importlib.import_module(module_name), name)
    except BaseException:
        if manifest.mode == "debug":
            raise StartError(_told()) from None
        raise StartError(f"the enclave's module failed to import; {_WHY}") from None
    if isinstance(entry, type) and issubclass(entry, Enclave):
        return entry
    # Loaded where an application is served, and nowhere else.
    from conclave.enclave.asgi import enclave_of

    try:
        return enclave_of(entry)
    except TypeError:
        raise StartError("the manifest's entry is neither an Enclave class nor an ASGI application") from None


def _told() -> str:
    """The error that is being handled, with the author's lines that led to it."""
    error = sys.exception()
    assert error is not None
    ours = (os.path.dirname(conclave.__file__), os.path.dirname(os.__file__), "<frozen ")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    return "".join(traceback.format_list(frames[-3:]) + traceback.format_exception_only(error)).strip()


class _Output:
    """Frames on their way to the host: one write for many of them, none copied but the small ones."""

    def __init__(self, loop: asyncio.AbstractEventLoop, channel: socket.socket) -> None:
        self._loop = loop
        self._channel = channel
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        self._frames = 0
        self._scheduled = False
        self._blocked = False
        self._waiting: Callable[[], None] | None = None
        self.closed = asyncio.Event()

    def send(self, kind: int, request: int, *payload: bytes) -> None:
        """Queue one frame, whose payload is these parts one after the other."""
        size = sum(map(len, payload))
        self._parts += (head(kind, request, size), *payload)
        self._size += HEADER.size + size
        self._frames += 1
        if (self._frames >= _BATCH or self._size >= _BATCH_SIZE) and not self._blocked:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.release)

    def hold(self) -> None:
        """Until `release`, only whole batches are written."""
        self._scheduled = True

    def release(self) -> None:
        """Write what waits, unless the channel is full: then it goes when there is room."""
        self._scheduled = False
        if self._parts and not self._blocked:
            self.flush()

    @property
    def full(self) -> bool:
        """Whether the host must read before it may ask more."""
        return self._size > _MAX_UNSENT

    def flush(self) -> None:
        """Write what the channel takes now."""
        self._frames = 0
        try:
            while self._parts:
                # The sandbox has no sendmsg, which could pass descriptors.
                self._sent(os.writev(self._channel.fileno(), self._parts[:_PARTS]))
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._channel, self.flush)
            return
        except OSError:
            self._parts.clear()
            self._size = 0
            self.closed.set()
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._channel)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()

    def _sent(self, size: int) -> None:
        """Forget what was written."""
        parts = self._parts
        self._size -= size
        if not self._size:
            # All of it, as nearly always.
            parts.clear()
            return
        done = 0
        while size and size >= len(parts[done]):
            size -= len(parts[done])
            done += 1
        # A frame without a payload has an empty part.
        while done < len(parts) and not len(parts[done]):
            done += 1
        del parts[:done]
        if size:
            parts[0] = memoryview(parts[0])[size:]

    def when_empty(self, work: Callable[[], None]) -> None:
        """Do that once everything that waits was written."""
        self._waiting = work


def _refuse(channel: socket.socket, text: str) -> NoReturn:
    channel.setblocking(True)
    _send_failed(channel, text)
    raise SystemExit(78) from None


async def _serve(channel: socket.socket, start: _Start, loaded: Loaded | None) -> None:
    loop = asyncio.get_running_loop()
    channel.setblocking(False)
    output = _Output(loop, channel)
    manifest = start.manifest
    try:
        state = None if loaded is None else loaded.begin(output.send, full=lambda: output.full)
    except StateError as error:
        # Before author code: the words are the log's own.
        _refuse(channel, str(error))
    if state is not None:
        state.broken = output.closed.set
    try:
        service = Service(
            enclave=start.cls(),
            interface=start.interface,
            claims=start.claims,
            evidence=start.tee.evidence,
            roster=tuple(manifest.roster),
            quorum=manifest.quorum,
            send=output.send,
            debug=manifest.mode == "debug",
            state=state,
        )
        await service.start()
    except BaseException:
        _refuse(channel, _told() if manifest.mode == "debug" else f"the enclave's start failed; {_WHY}")
    try:
        service.announce()
    except (Error, OSError) as error:
        # No author code runs here: the words are the driver's.
        _refuse(channel, str(error) if isinstance(error, Error) else "the TEE made no evidence")
    # Start-up objects live as long as the boot: keep the collector off them.
    gc.collect()
    gc.freeze()
    # One buffer for the whole boot: fresh pages for each read cost more than the read.
    reader = FrameReader(Kind, buffer_size=_READ_SIZE, views=frozenset({Kind.MAIL, Kind.CHUNKS}))
    if loaded is not None and not service.handle([*loaded.early, *reader.feed(loaded.rest)]):
        output.closed.set()
    keep_memory(_KEPT_MIB)

    def readable() -> None:
        if output.full:
            # The host does not read: nothing more is taken from it before it does.
            loop.remove_reader(channel)
            output.when_empty(lambda: loop.add_reader(channel, readable))
            return
        try:
            size = channel.recv_into(reader.space())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if not size:
            output.closed.set()
            return
        try:
            frames = reader.received(size)
        except FormatError:
            # The host speaks another protocol; nothing it says can be trusted to
            # be framed. Closing the channel ends this boot (CHAN-1).
            output.closed.set()
            return
        output.hold()
        service.hold()
        if not service.handle(frames):
            output.closed.set()
        service.flush()
        output.release()

    loop.add_reader(channel, readable)
    await output.closed.wait()
    loop.remove_reader(channel)
    await service.stop()
    service.flush()
    output.flush()
    sys.stdout.flush()
    os._exit(0)
