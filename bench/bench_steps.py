"""Where the enclave's processor time for one call goes, step by step, against its AES-GCM alone.

The service of an enclave, in this process, handles calls that real client sessions encrypted,
32 frames at a time as the host channel brings them. `whole` is all of it but reading and
writing the channel. Each step is then timed by itself on the same mails; `rest` is what
the steps do not explain: order, bookkeeping, the author's method. `python bench/bench_steps.py
FILE.svg` also samples the stacks of 1 KiB calls and draws them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

from _common import emit, middle
from _flame import Sampler

from conclave._crypto import SUITE_ID, AeadKey, DecryptionKey, Marker, Secret, SigningKey, random_bytes
from conclave._framing import Frame, FrameReader, Kind, pack
from conclave._mailheader import parse_mail
from conclave.attestation.claims import InstanceClaims
from conclave.enclave import Enclave, rpc
from conclave.enclave._service import Service
from conclave.enclave._state import State
from conclave.enclave.drivers import Evidence
from conclave.mail import ClientSession, EnclaveSession, Reply, ReplyKind, Request, RequestKind
from conclave.mail._wire import parse_request
from conclave.rpc.interface import decode_call, encode_call, interface_of

ROUNDS = 9
CALLS = 640
BATCH = 32
CHANNELS = 16
SIZES = (1024, 65536)


class Echo(Enclave):
    """What the other benchmarks of calls serve."""

    @rpc
    def echo(self, data: bytes) -> bytes:
        """The same again."""
        return data


def _claims(encryption_key: bytes, signing_key: bytes, log_id: bytes | None) -> InstanceClaims:
    zero = bytes(32)
    return InstanceClaims(
        version=1,
        bundle_id=zero,
        code=zero,
        signer=zero,
        product_id=0,
        revocation_level=0,
        runtime="bench",
        sandbox="none",
        mode="debug",
        suite=SUITE_ID,
        encryption_key=encryption_key,
        signing_key=signing_key,
        boot_nonce=zero,
        log_id=log_id,
        kds_constraint=None,
        interface=zero,
    )


class Calls:
    """One enclave's service, and calls that wait for it."""

    def __init__(self, size: int, state: State | None = None, channels: int = CHANNELS) -> None:
        self.sent = 0
        self._log_id = None if state is None else state.log_id
        self.interface = interface_of(Echo)
        self.service = Service(
            enclave=Echo(),
            interface=self.interface,
            claims=lambda encryption, signing: _claims(encryption, signing, self._log_id),
            evidence=lambda _: Evidence(data=b"", format="sgx", hints=b""),
            roster=(),
            quorum=0,
            send=self._take,
            debug=True,
            state=state,
        )
        if state is not None:
            state._send = self._take
        self.body = encode_call("echo", [random_bytes(size)])
        reply_key = DecryptionKey.generate().public
        self._clients = [
            ClientSession(
                claims_digest=self.service.claims.digest(),
                encryption_key=self.service.claims.encryption_key,
                identity=SigningKey.generate(),
                reply_key=reply_key,
                topic="default",
                log_id=self._log_id,
            )
            for _ in range(channels)
        ]
        self._next = [0] * channels
        self._route = 0
        self._reader = FrameReader(Kind, views=frozenset({Kind.MAIL}), buffer_size=16 * 1024 * 1024)
        self._reply, self._keeping = b"", True
        # The first call of each carries the opening; its answer ends that.
        for number, client in enumerate(self._clients):
            self.run([self.frame(number)])
            client.decrypt(self._reply)
        self._keeping = False

    def forget_clients(self) -> None:
        """Leave what the enclave has of them."""
        self._clients.clear()
        self._next.clear()
        del self._reader

    def _take(self, kind: int, request: int, *payload: bytes) -> None:
        if kind not in (Kind.REPLY, Kind.DONE):
            return
        self.sent += 1
        self._reply = b"".join(payload) if self._keeping else b""

    def frame(self, number: int) -> bytes:
        """The next call of one channel, acknowledging those before."""
        sequence, self._next[number] = self._next[number], self._next[number] + 1
        mail = self._clients[number].encrypt(Request(RequestKind.CALL, 0, sequence, sequence, self.body))
        self._route += 1
        return pack(Kind.MAIL, self._route, mail)

    def batches(self) -> list[bytes]:
        """Calls of all channels in turn, as they come over the host channel."""
        return [b"".join(self.frame((n + k) % CHANNELS) for k in range(BATCH)) for n in range(0, CALLS, BATCH)]

    def frames(self, batch: bytes) -> list[Frame]:
        """What the reader of the enclave's loop makes of it."""
        space = self._reader.space()
        space[: len(batch)] = batch
        return self._reader.received(len(batch))

    def run(self, batches: list[bytes]) -> None:
        """Handle them."""
        for batch in batches:
            self.service.hold()
            self.service.handle(self.frames(batch))
            self.service.flush()


def _each(work: Callable[[], object], count: int, *, times: int = 20) -> float:
    """Microseconds of one of `count` that the work does: the best of several, since steps are short."""
    found = []
    for _ in range(times):
        began = process_time()
        work()
        found.append(process_time() - began)
    return min(found) / count * 1e6


def steps(calls: Calls) -> dict[str, float]:
    """Each step by itself, in microseconds a call."""
    batch = calls.batches()[0]
    frames = [Frame(f.kind, f.request, bytes(f.payload)) for f in calls.frames(batch)]
    mails = [parse_mail(f.payload) for f in frames]
    ends = {session_id: end for session_id, (end, _) in calls.service._mailbox._sessions.items()}
    pairs = [(ends[m.session_id], m) for m in mails]
    nonces = [m.counter.to_bytes(8, "big") + bytes(4) for m in mails]
    plain = [
        end._receive.decrypt(nonce, m.ciphertext, m.associated) for (end, m), nonce in zip(pairs, nonces, strict=True)
    ]
    requests = [parse_request(p, b"") for p in plain]
    marker, method = Marker(), calls.interface.methods["echo"]
    encode = __import__("msgspec").msgpack.Encoder().encode
    value = method.decode_arguments(decode_call(calls.body)[1])[0]
    reply = Reply(ReplyKind.RESULT, 1, 0, 1, 0, 1, encode(value))
    end: EnclaveSession = pairs[0][0]

    def decrypt() -> None:
        for (e, m), nonce in zip(pairs, nonces, strict=True):
            e._receive.decrypt(nonce, m.ciphertext, m.associated)

    def arguments() -> None:
        for request in requests:
            method.decode_arguments(decode_call(request.body)[1])

    return {
        "frames": _each(lambda: calls.frames(batch), BATCH),
        "public header": _each(lambda: [parse_mail(f.payload) for f in frames], BATCH),
        "decrypt": _each(decrypt, BATCH),
        "private header": _each(lambda: [parse_request(p, b"") for p in plain], BATCH),
        "mark of the request": _each(lambda: [marker.mark(b"\1\0", r.body) for r in requests], BATCH),
        "arguments": _each(arguments, BATCH),
        "result": _each(lambda: [encode(value) for _ in requests], BATCH),
        "pad and encrypt": _each(lambda: [end.encrypt(reply) for _ in requests], BATCH),
    }


def alone(size: int) -> float:
    """Microseconds of the two AES-GCM operations that a call cannot do without."""
    key = AeadKey(Secret.random())
    data, associated, count = random_bytes(size + 48), bytes(68), [0]

    def both() -> None:
        for _ in range(BATCH):
            count[0] += 1
            nonce = count[0].to_bytes(12, "big")
            key.decrypt(nonce, key.encrypt(nonce, data, associated), associated)

    return _each(both, BATCH)


async def main() -> None:
    """Measure and report; draw the stacks if a file is named."""
    for size in SIZES:
        calls = Calls(size)
        whole, aes, found = [], [], []
        for _ in range(ROUNDS):
            whole.append(min(_each(partial(calls.run, [batch]), BATCH, times=1) for batch in calls.batches()))
            aes.append(alone(size))
            found.append(steps(calls))
        split = {name: median(f[name] for f in found) for name in found[0]}
        split["rest"] = median(whole) - sum(split.values())
        emit(
            f"steps_{size // 1024}kib",
            ours={"whole_us": middle(whole), **{name: middle([value]) for name, value in split.items()}},
            theirs={"aes_gcm_us": middle(aes)},
            ratios={"whole_over_aes_gcm": middle(w / a for w, a in zip(whole, aes, strict=True))},
            rounds=ROUNDS,
        )
    if len(sys.argv) > 1:
        calls = Calls(SIZES[0])
        sampler = Sampler()
        for _ in range(60):
            batches = calls.batches()
            with sampler:
                calls.run(batches)
        Path(sys.argv[1]).write_text(sampler.svg("One call of 1 KiB in the enclave", within="run"))


if __name__ == "__main__":
    asyncio.run(main())
