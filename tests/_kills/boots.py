"""What runs in a forked process: one boot of the real enclave runtime, or one life of the real host.

Faked are only peers: the TEE, which answers in the same process, and the network between client and host.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec
from tests._kills.nursery import Request, ask
from tests._kills.record import DIED, ENCRYPTED, LOADED, SENDING, STARTED, WRITING, Recorder

from conclave import _crypto
from conclave.bundle import parse_manifest
from conclave.enclave import _loading, _runtime, _state, drivers
from conclave.errors import Error, StoreFull, StoreUnavailable
from conclave.host import Host, journal, link, outbox
from conclave.host import host as running
from conclave.host.states import Item, Snapshot, segments
from conclave.host.states.files import FileStates
from conclave.host.stores import open_store
from conclave.persistence import snapshots
from conclave.platform.machine import Machine

RECORD = "record"
_warm: dict[str, Any] = {}


def warm(place: Path) -> None:
    """Load what every child needs, and make what is rare in life frequent."""
    from conclave.enclave import _posts, _service, _transactions  # noqa: F401
    from conclave.host.stores import directory  # noqa: F401
    from conclave.mail import memory  # noqa: F401

    bundle = place / "bundle"
    sys.path.append(str(bundle / "app"))
    manifest = (bundle / "manifest").read_bytes()
    _warm["manifest"] = parse_manifest(manifest)
    _warm["machine"] = Machine.open(place / "machine")
    _warm["endorsements"] = _warm["machine"].endorsements()
    __import__(_warm["manifest"].entry.partition(":")[0])
    # A snapshot after some kilobytes, of several chunks; files that are soon full; stores that are soon tried again;
    # and no memory made ready, which costs as much as all the rest of a start.
    rare: dict[Any, dict[str, Any]] = {
        _state: {"_SNAPSHOT_BYTES": 12 * 1024, "_PAUSE_SECONDS": 0.0005},
        snapshots: {"CHUNK_CONTENT": 3 * 1024},
        segments: {"SEGMENT_BYTES": 64 * 1024, "STEP_BYTES": 16 * 1024},
        journal: {"RETRY_SECONDS": 0.002, "MOST_RETRY_SECONDS": 0.01},
        outbox: {"RETRY_SECONDS": 0.002, "MOST_RETRY_SECONDS": 0.01},
        running: {"RESTART_SECONDS": 0.005, "MOST_RESTART_SECONDS": 0.005},
        _runtime: {"keep_memory": lambda mib: None},
        link: {"keep_memory": lambda mib: None},
    }
    for module, values in rare.items():
        for name, value in values.items():
            assert hasattr(module, name), name
            setattr(module, name, value)


def die(recorder: Recorder, where: int) -> NoReturn:
    """At this instruction."""
    recorder.number(DIED, where)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


# The enclave --------------------------------------------------------------------------


class _Tee:
    """The simulated TEE without a process of its own."""

    kind = "simulated"
    places: Sequence[str] | None = None

    def __init__(self, place: Path) -> None:
        self._place = place

    def identity(self, mounted: drivers.Mounted) -> drivers.Identity:
        self._mounted = mounted
        return drivers.Identity(tee="simulated", bundle_id=mounted.bundle_id, sandbox="none")

    def check_closed(self) -> None:
        """Nothing to be closed."""

    def evidence(self, report_data: bytes) -> drivers.Evidence:
        quote = _warm["machine"].quote(
            report_data=report_data, config_id=self._mounted.bundle_id + bytes(32), mrenclave=bytes(32)
        )
        return drivers.Evidence("sgx", quote)

    def sealing_key(self, policy: str, context: bytes = b"", *, level: int | None = None) -> bytes:
        mounted = self._mounted
        key: bytes = _warm["machine"].sealing_key(
            policy,
            code=mounted.code,
            signer=mounted.signer,
            product_id=mounted.product_id,
            revocation_level=mounted.revocation_level if level is None else level,
            context=context,
        )
        return key


def enclave(place: Path, config: Request, seed: int, channel: int, output: int) -> None:
    """One boot. `output` is held open for as long as it lives."""
    # Where a boot finds its channel, before anything else is opened there.
    if output == _runtime.HOST_FD:
        os.dup(output)
    if channel != _runtime.HOST_FD:
        os.dup2(channel, _runtime.HOST_FD)
        os.close(channel)
    chance = random.Random(seed)
    recorder = Recorder(place / RECORD, config.get("world", 0))
    armed = chance.random() < config.get("enclave_dies", 0)
    _crypto.on_encrypt = _at(chance.randint(1, 60), recorder) if armed else recorder.nonce
    if chance.random() < config.get("enclave_dies", 0):
        os.writev = _torn_frames(chance, recorder)  # type: ignore[assignment]
    module = sys.modules[_warm["manifest"].entry.partition(":")[0]]
    module.Ledger.started = partial(recorder.number, STARTED)
    begin = _loading.Loaded.begin

    def begun(loaded: Any, *arguments: Any, **options: Any) -> Any:
        recorder.number(LOADED, loaded.log.version)
        return begin(loaded, *arguments, **options)

    setattr(_loading.Loaded, begin.__name__, begun)
    os.chdir(place / config.get("bundle", "bundle"))
    _runtime.main(partial(_Tee, place))


def _at(count: int, recorder: Recorder) -> Callable[[bytes, bytes], None]:
    """Record; at that one of them die, between the nonce's use and whatever comes of it."""
    left = count

    def recording(key_id: bytes, nonce: bytes) -> None:
        nonlocal left
        recorder.nonce(key_id, nonce)
        left -= 1
        if not left:
            die(recorder, ENCRYPTED)

    return recording


def _torn_frames(chance: random.Random, recorder: Recorder) -> Callable[[int, Sequence[bytes]], int]:
    write, left = os.writev, chance.randint(1, 40)

    def writing(file: int, parts: Sequence[bytes]) -> int:
        nonlocal left
        left -= 1
        if left:
            return write(file, parts)
        whole = b"".join(parts)
        os.write(file, whole[: chance.randrange(len(whole) + 1)])
        die(recorder, SENDING)

    return writing


# The host -----------------------------------------------------------------------------


class _Process:
    """What a host sees of its enclave's process."""

    def __init__(self, control: socket.socket, config: Request, pid: int, output: BinaryIO) -> None:
        self._control = control
        self._config = config
        self._pid = pid
        self._output = output
        self._ended = False
        self.stdout = self._events()

    def _events(self) -> Any:
        event = {"event": "launched", "endorsements": _warm["endorsements"].hex()}
        yield msgspec.json.encode(event)
        self.wait()
        yield b'{"event": "exited"}'

    def wait(self, timeout: float | None = None) -> int:
        while not self._ended and self._output.read(1):
            pass
        self._ended = True
        return 0

    def terminate(self) -> None:
        ask(self._control, {"do": "kill", "name": self._config["name"], "what": ["enclave"], "pid": self._pid})


class _Launched:
    def __init__(self, control: socket.socket, config: Request) -> None:
        self.channel, theirs = socket.socketpair()
        ours, output = os.pipe()
        pid = ask(control, {**config, "do": "enclave"}, (theirs.fileno(), output))["pid"]
        os.close(output)
        theirs.close()
        self.process = _Process(control, config, pid, os.fdopen(ours, "rb"))


class Faulty(FileStates):
    """Refuses every second write, before or after it has it; or takes its time; or has no room now and then."""

    def __init__(self, directory: Path, faults: str, chance: random.Random) -> None:
        super().__init__(directory)
        self._faults = faults
        self._chance = chance
        self._writes = 0

    async def _write(self, work: Callable[[], Any]) -> None:
        self._writes += 1
        if self._faults == "slow":
            await asyncio.sleep(self._chance.choice((0, 0.001, 0.01)))
        refuses = self._faults == "second" and self._writes % 2 == 0
        if refuses and self._chance.random() < 0.5:
            raise StoreUnavailable("refused before it was written")
        await work()
        if refuses:
            raise StoreUnavailable("refused after it was written")
        if self._faults == "slow":
            await asyncio.sleep(self._chance.choice((0, 0.001, 0.01)))

    async def append(self, items: Sequence[Item]) -> None:
        await self._write(lambda: FileStates.append(self, items))

    async def put_chunk(self, snapshot: Snapshot, index: int, chunk: bytes) -> None:
        await self._write(lambda: FileStates.put_chunk(self, snapshot, index, chunk))

    async def complete(self, snapshot: Snapshot, manifest: bytes) -> None:
        await self._write(lambda: FileStates.complete(self, snapshot, manifest))


def _no_room(chance: random.Random) -> None:
    """A disk that is full every now and then, also in the middle of a write."""
    allocate, write = os.posix_fallocate, os.pwrite

    def allocating(file: int, start: int, size: int) -> None:
        if chance.random() < 0.3:
            raise OSError(errno.ENOSPC, "no room")
        allocate(file, start, size)

    def writing(file: int, data: bytes, at: int) -> int:
        if chance.random() < 0.1:
            if chance.random() < 0.5:
                write(file, bytes(data[: chance.randrange(len(data))]), at)
            raise OSError(errno.ENOSPC, "no room")
        return write(file, data, at)

    os.posix_fallocate, os.pwrite = allocating, writing  # type: ignore[assignment]


def _dies_writing(chance: random.Random, recorder: Recorder) -> None:
    """The host ends within a call to the disk; of a write that was not synced any part may be there."""
    left = chance.randint(1, 40)

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def calling(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left:
                return call(*arguments)
            if call is write:
                file, data, at = arguments
                for start in range(0, len(data), 64):
                    if chance.random() < 0.5:
                        write(file, bytes(data[start : start + 64]), at + start)
            elif chance.random() < 0.5:
                call(*arguments)
            die(recorder, WRITING)

        return calling

    write = os.pwrite
    for name in ("pwrite", "fdatasync", "fsync", "ftruncate", "posix_fallocate", "replace", "unlink"):
        setattr(os, name, wrapped(getattr(os, name)))


def host(place: Path, config: Request, seed: int, control: socket.socket, connection: socket.socket) -> None:
    """One life of a host; ends when its clients' connection does."""
    asyncio.run(_host(place, config, random.Random(seed), control, connection))


async def _host(
    place: Path, config: Request, chance: random.Random, control: socket.socket, connection: socket.socket
) -> None:
    directory = place / config["name"]
    directory.mkdir(exist_ok=True)
    faults = config.get("faults", "")
    if faults == "full":
        _no_room(chance)
    if chance.random() < config.get("host_dies", 0):
        _dies_writing(chance, Recorder(place / RECORD, config.get("world", 0)))
    state = (
        Faulty(directory / "state", faults, chance) if faults in ("second", "slow") else FileStates(directory / "state")
    )
    with (place / f"{config['name']}.events").open("ab", buffering=0) as events:

        def on_event(event: dict[str, Any]) -> None:
            if event.get("event") not in ("launched", "exited", "ended"):
                events.write(msgspec.json.encode(event) + b"\n")

        served = Host(
            lambda: _Launched(control, config),  # type: ignore[arg-type, return-value]
            on_event=on_event,
            state=state,
            store=open_store(f"file:{directory}", alone=True),
        )
        reader, writer = await asyncio.open_connection(sock=connection)
        serving = asyncio.create_task(_serve(served, reader, writer))
        try:
            await served.start()
        except (Error, StoreFull) as error:
            on_event({"event": "refused", "code": error.code, "text": str(error)})
            os._exit(3)
        await serving
        os._exit(0)


async def _serve(served: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    tasks = set()

    async def answer(number: int, method: str, path: str, bearer: str, body: bytes) -> None:
        for _ in range(200):
            # Who asks while it starts need not ask in a loop.
            if served.info is not None:
                break
            await asyncio.sleep(0.001)
        data = msgspec.msgpack.encode([number, *await _request(served, method, path, bearer, body)])
        writer.write(len(data).to_bytes(4, "big") + data)

    try:
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            task = asyncio.create_task(answer(*msgspec.msgpack.decode(await reader.readexactly(size))))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except asyncio.IncompleteReadError:
        os._exit(0)


async def _request(served: Host, method: str, target: str, bearer: str, body: bytes) -> tuple[int, bytes]:
    """One HTTP request, without HTTP."""
    asked, parts, status = False, [], 0
    path, _, query = target.partition("?")
    never = asyncio.get_running_loop().create_future()

    async def receive() -> dict[str, Any]:
        nonlocal asked
        if asked:
            await never
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = [(b"authorization", b"Bearer " + bearer.encode())] if bearer else []
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
    await served(scope, receive, send)
    return status, b"".join(parts)
