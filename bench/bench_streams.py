"""Streams through an enclave: up, down and both at once, against the cipher alone and against copies over sockets.

Ours: `conclave serve` and the sandboxed enclave process behind it, under the simulated
TEE, and the package's own asynchronous client, each a process of its own. An item is
256 KiB, a chunk's whole content, of one buffer at the client and at the enclave.

Theirs: `aes_gcm`, one thread that encrypts 256 KiB into a buffer which it uses again, and
`aes_gcm_two`, two processes that do so at once, as a stream keeps all cores of a small machine
busy, and two virtual cores may be one real one; `channel`, what an enclave fed over a socket does
at least: it reads 1 MiB over a Unix socket into one buffer and decrypts 256 KiB at a time into
another, in six lines; `socket` and `tls`, 256 KiB at a time between two processes over the loopback
interface, without and with TLS 1.3 (`ssl`).

Measured: bytes a second, and bytes for each second of processor time of the enclave,
of the host and of the client; of theirs, of the receiving and of the sending process.
`both` counts bytes of both directions, and each is encrypted or decrypted by the
enclave once. Ratios: bytes a second of the enclave's processor time, against both of
`aes_gcm`, `channel`, and what the same end of a TLS copy reaches. Rounds take all in turn.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from statistics import median

from _common import Server, certificate, emit, middle, trust
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from conclave.bundle import build
from conclave.client import AsyncClient

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
SIZE = int(os.environ.get("BENCH_MIB", "512")) << 20
PIECE = 262144
ENCLAVE = """
import resource, time
from collections.abc import AsyncIterator
from conclave.enclave import Enclave, rpc

PART = bytes(range(256)) * 1024


class Streams(Enclave):
    @rpc
    async def up(self, data: AsyncIterator[bytes]) -> int:
        size = 0
        async for part in data:
            size += len(part)
        return size

    @rpc
    async def down(self, size: int) -> AsyncIterator[bytes]:
        for _ in range(size // len(PART)):
            yield PART

    @rpc
    async def both(self, data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in data:
            yield part

    @rpc
    def used(self) -> tuple[float, int]:
        return time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""


async def pieces(size: int) -> AsyncIterator[bytes]:
    """So many bytes, always the same buffer."""
    part = bytes(range(256)) * (PIECE // 256)
    for _ in range(size // PIECE):
        yield part


async def up(client: AsyncClient) -> int:
    """One upload."""
    size: int = await client.call_stream("up", upload=pieces(SIZE), returns=int).result()
    return size


async def down(client: AsyncClient) -> int:
    """One download."""
    size = 0
    async for part in client.call_stream("down", SIZE):
        size += len(part)
    return size


async def both(client: AsyncClient) -> int:
    """An echo, which goes up and comes down at once."""
    size = 0
    async for part in client.call_stream("both", upload=pieces(SIZE)):
        size += len(part)
    return 2 * size


async def ours(url: str, constraint: str, server: Server) -> tuple[dict[str, dict[str, float]], float]:
    """Rates of one round, in bytes a second of each clock; the enclave's largest memory in MiB."""
    found: dict[str, dict[str, float]] = {}
    peak = 0
    async with AsyncClient(url, constraint=constraint, timeout_seconds=120) as client:
        await client.call_stream("up", upload=pieces(8 << 20), returns=int).result()
        for work in (up, down, both):
            enclave, _ = await client.call("used")
            before = (time.perf_counter(), enclave, server.cpu_seconds(), time.process_time())
            size = await work(client)
            after_wall = time.perf_counter()
            enclave, peak = await client.call("used")
            if size != SIZE * (2 if work is both else 1):
                raise RuntimeError(f"{size} bytes came back")
            wall, enclave_cpu, all_cpu, client_cpu = (
                after_wall - before[0],
                enclave - before[1],
                server.cpu_seconds() - before[2],
                time.process_time() - before[3],
            )
            found[work.__name__] = {
                "bytes_per_second": size / wall,
                "bytes_per_enclave_cpu": size / enclave_cpu,
                "bytes_per_host_cpu": size / max(all_cpu - enclave_cpu, 0.01),
                "bytes_per_client_cpu": size / client_cpu,
            }
    return found, peak / 1024


def aes_gcm() -> float:
    """Bytes a second of one thread."""
    key, nonce, associated = AESGCM(os.urandom(32)), bytes(12), bytes(36)
    data, into = os.urandom(PIECE), bytearray(PIECE + 16)
    count = SIZE // PIECE
    began = time.process_time()
    for _ in range(count):
        key.encrypt_into(nonce, data, associated, into)
    return count * PIECE / (time.process_time() - began)


def aes_gcm_two() -> float:
    """Bytes a second of each of two processes that encrypt at once: the mean."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(done, repr(aes_gcm()).encode())
        os._exit(0)
    mine = aes_gcm()
    other = float(os.read(ready, 100))
    os.waitpid(child, 0)
    os.close(ready)
    os.close(done)
    return (mine + other) / 2


def channel() -> float:
    """Bytes a second of the processor time that reading and decrypting alone take."""
    key, nonce, associated = AESGCM(bytes(32)), bytes(12), bytes(36)
    sealed = key.encrypt(nonce, os.urandom(PIECE), associated)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        for _ in range(SIZE // PIECE // 4):
            theirs.sendall(sealed * 4)
        os._exit(0)
    theirs.close()
    into, plain = memoryview(bytearray(4 * len(sealed))), bytearray(PIECE)
    began = time.process_time()
    for _ in range(SIZE // PIECE // 4):
        have = 0
        while have < len(into):
            have += ours.recv_into(into[have:])
        for at in range(0, len(into), len(sealed)):
            key.decrypt_into(nonce, into[at : at + len(sealed)], associated, plain)
    seconds = time.process_time() - began
    os.waitpid(child, 0)
    ours.close()
    return SIZE / seconds


def copied(wrap: Callable[[socket.socket, bool], socket.socket]) -> dict[str, float]:
    """A copy from a child process to this one."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sock = wrap(listener.accept()[0], True)
            part = bytes(PIECE)
            began = time.process_time()
            for _ in range(SIZE // PIECE):
                sock.sendall(part)
            os.write(done, repr(time.process_time() - began).encode())
            sock.recv(1)
        finally:
            os._exit(0)
    sock = wrap(socket.create_connection(listener.getsockname()), False)
    into = bytearray(PIECE)
    size = 0
    wall, cpu = time.perf_counter(), time.process_time()
    while size < SIZE:
        size += sock.recv_into(into)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sent = float(os.read(ready, 100))
    sock.close()
    listener.close()
    os.waitpid(child, 0)
    os.close(ready)
    os.close(done)
    return {
        "bytes_per_second": size / wall,
        "bytes_per_receiver_cpu": size / cpu,
        "bytes_per_sender_cpu": size / sent,
    }


def main() -> None:
    """Measure and report."""
    mine: list[dict[str, dict[str, float]]] = []
    alone: list[float] = []
    two: list[float] = []
    least: list[float] = []
    plain: list[dict[str, float]] = []
    tls: list[dict[str, float]] = []
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-streams-") as place_name:
        place = Path(place_name)
        source = place / "streams.py"
        source.write_text(ENCLAVE)
        bundle = build(source, place / "streams.enclave", mode="release")
        certificate_file, key_file = certificate(place)
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serving.load_cert_chain(certificate_file, key_file)
        trusting = trust(certificate_file)

        def wrapped(sock: socket.socket, server: bool) -> socket.socket:
            if server:
                return serving.wrap_socket(sock, server_side=True)
            return trusting.wrap_socket(sock, server_hostname="localhost")

        command = ("-m", "conclave.cli", "serve", bundle.path, "--port", "0", "--platform", place / "m")
        for _ in range(ROUNDS):
            with Server(*command) as server:
                found, peak = asyncio.run(ours(server.url, f"C:{bundle.code.hex()} SEC:INSECURE", server))
            mine.append(found)
            peaks.append(peak)
            alone.append(aes_gcm())
            two.append(aes_gcm_two())
            least.append(channel())
            plain.append(copied(lambda sock, server: sock))
            tls.append(copied(wrapped))

    def of(rounds: list[dict[str, float]]) -> dict[str, float]:
        return {name: middle(r[name] for r in rounds) for name in rounds[0]}

    emit(
        "streams",
        ours={name: of([m[name] for m in mine]) for name in mine[0]} | {"enclave_peak_mib": middle(peaks)},
        theirs={
            "aes_gcm": {"bytes_per_cpu": middle(alone)},
            "aes_gcm_two": {"bytes_per_cpu": middle(two)},
            "channel": {"bytes_per_cpu": middle(least)},
            "socket": of(plain),
            "tls": of(tls),
        },
        ratios={
            name: {
                **{
                    f"enclave_cpu_to_{what}": round(
                        median(m[name]["bytes_per_enclave_cpu"] / a for m, a in zip(mine, rates, strict=True)), 3
                    )
                    for what, rates in (("aes_gcm", alone), ("aes_gcm_two", two), ("channel", least))
                },
                "enclave_cpu_to_tls": round(
                    median(
                        m[name]["bytes_per_enclave_cpu"]
                        / t["bytes_per_sender_cpu" if name == "down" else "bytes_per_receiver_cpu"]
                        for m, t in zip(mine, tls, strict=True)
                    ),
                    3,
                ),
            }
            for name in mine[0]
        },
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
