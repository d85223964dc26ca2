"""A hostile host speaks frames to a live enclave: T-14, T-15; a program asks for another's key: T-08."""

from __future__ import annotations

import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclave import _codec, _crypto
from conclave._crypto import PURPOSES, DecryptionKey, SigningKey, verify_signature
from conclave._framing import HEADER, MAX_PAYLOAD, Frame, FrameReader, Kind, pack
from conclave.attestation import AttestationResult, Constraint, verify_instance
from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import CallError, FormatError, SignatureError
from conclave.mail import ClientSession, Conversation, RequestKind
from conclave.platform import start_platform
from conclave.rpc.interface import encode_call
from conclave.testing import HostServer

SOURCE = """
import resource
from conclave.enclave import Enclave, rpc

class Target(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data

    @rpc
    def memory(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @rpc
    def key(self, policy: str, context: bytes, level: int) -> bytes:
        # What a hostile author does: it asks for itself, past the driver's own checks.
        tee = self._context._evidence.__self__
        return tee._ask(3, policy.encode() + b"\\0" + level.to_bytes(2, "big") + context, 131)

    @rpc
    def ask(self, payload: bytes) -> bytes:
        return self._context._evidence.__self__._ask(3, payload, 131)

    @rpc
    def quote(self, report_data: bytes) -> bytes:
        tee = self._context._evidence.__self__
        return tee.evidence(report_data).data
"""


class Wire:
    """The operator's end of the host channel of one boot."""

    def __init__(self, machine: Path, bundle: Bundle) -> None:
        self.launched = start_platform(machine, bundle.path)
        self.channel = self.launched.channel
        self.channel.settimeout(60)
        self.reader = FrameReader(Kind)
        self.waiting: list[Frame] = []
        self.bundle = bundle
        assert self.launched.process.stdout is not None
        for line in self.launched.process.stdout:
            event = json.loads(line)
            if event["event"] == "launched":
                self.endorsements = bytes.fromhex(event["endorsements"])
                break
        self.instance = self.result(self.read())

    def read(self) -> Frame:
        while not self.waiting:
            data = self.channel.recv(1 << 20)
            if not data:
                raise EOFError
            self.waiting += self.reader.feed(data)
        return self.waiting.pop(0)

    def ask(self, kind: int, payload: bytes = b"", request: int = 1) -> Frame:
        self.channel.sendall(pack(kind, request, payload))
        return self.read()

    def flood(self, frame: bytes) -> int:
        """Write a frame again and again and read nothing; how often it went before the enclave took no more."""
        self.channel.settimeout(2)
        sent = 0
        try:
            while sent < 200:
                rest = memoryview(frame)
                while rest:
                    rest = rest[self.channel.send(rest) :]
                sent += 1
        except TimeoutError:
            pass
        finally:
            self.channel.settimeout(60)
        return sent

    def result(self, frame: Frame) -> AttestationResult:
        assert frame.kind == Kind.INSTANCE
        given = _codec._decoder(dict[str, Any]).decode(frame.payload)
        assert given["hints"] == b""
        info = {"version": 1, "format": given["format"], "evidence": given["evidence"]}
        info |= {"endorsements": self.endorsements, "claims": given["claims"]}
        constraint = Constraint.parse(f"C:{self.bundle.code.hex()} SEC:INSECURE")
        return verify_instance(_codec.encode(info), constraint, now=datetime.now(UTC))

    def session(self, topic: str = "t") -> Conversation:
        conversation = Conversation()
        session = ClientSession(
            claims_digest=self.instance.claims_digest,
            encryption_key=self.instance.claims.encryption_key,
            identity=SigningKey.generate(),
            reply_key=DecryptionKey.generate().public,
            topic=topic,
        )
        conversation.use(session, new_boot=False)
        return conversation

    def alive(self) -> None:
        """An honest client is served."""
        conversation = self.session()
        item = conversation.add(RequestKind.CALL, encode_call("echo", [b"alive"]))
        reply = self.ask(Kind.MAIL, item.encrypted, 77)
        assert (reply.kind, reply.request) == (Kind.DONE, 77)
        conversation.receive(reply.payload)
        assert item.done

    def ended(self) -> bool:
        try:
            while self.channel.recv(1 << 20):
                pass
        except ConnectionResetError:
            pass
        return self.launched.process.wait(30) == 0

    def close(self) -> None:
        self.channel.close()
        self.launched.process.wait(30)


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("target", SOURCE)


@contextmanager
def wired(machine: Path, bundle: Bundle) -> Iterator[Wire]:
    wire = Wire(machine, bundle)
    try:
        yield wire
    finally:
        wire.close()


@pytest.fixture(scope="module")
def wire(machine: Path, bundle: Bundle) -> Iterator[Wire]:
    with wired(machine, bundle) as made:
        yield made


@pytest.mark.slow
@pytest.mark.spec("T-14", "CHAN-1", "CHAN-3")
@pytest.mark.parametrize(
    "data",
    [
        os.urandom(1000),
        HEADER.pack(0, 200, bytes(3), 1),
        HEADER.pack(0, 1, b"\0\0\1", 1),
        HEADER.pack(MAX_PAYLOAD + 1, 1, bytes(3), 1),
        HEADER.pack(2**32 - 1, 1, bytes(3), 1),
    ],
    ids=["random", "unknown kind", "reserved", "oversized", "largest"],
)
def test_what_is_no_frame_ends_the_boot_and_nothing_else(machine: Path, bundle: Bundle, data: bytes) -> None:
    with wired(machine, bundle) as wire:
        wire.channel.sendall(data)
        assert wire.ended()


@pytest.mark.slow
@pytest.mark.spec("T-14", "CHAN-4")
def test_odd_frames_are_answered_with_a_word(wire: Wire) -> None:
    for kind in (Kind.INSTANCE, Kind.REPLY, Kind.DONE, Kind.ERROR, Kind.SIGNED, Kind.FAILED):
        answer = wire.ask(kind, b"from the host", 5)
        assert (answer.kind, answer.request, answer.payload) == (Kind.ERROR, 5, b"format")
    for challenge in (b"", bytes(31), bytes(33), bytes(100000)):
        assert wire.ask(Kind.CHALLENGE, challenge).payload == b"format"
    for junk in (b"", b"CML1", bytes(10000), os.urandom(5000)):
        assert wire.ask(Kind.MAIL, junk).payload == b"format"
    wire.alive()


@pytest.mark.slow
@pytest.mark.spec("T-14", "CHAN-2")
def test_frames_in_pieces(wire: Wire) -> None:
    data = pack(Kind.CHALLENGE, 9, bytes(32))
    for byte in data:
        wire.channel.sendall(bytes([byte]))
    assert wire.read().kind == Kind.SIGNED
    wire.channel.sendall(data * 500)
    assert all(wire.read().kind == Kind.SIGNED for _ in range(500))
    wire.alive()


@pytest.mark.slow
@pytest.mark.spec("T-14", "MAIL-3", "MAIL-13")
def test_floods_leave_memory_bounded(wire: Wire) -> None:
    def memory() -> int:
        conversation = wire.session()
        item = conversation.add(RequestKind.CALL, encode_call("memory", []))
        conversation.receive(wire.ask(Kind.MAIL, item.encrypted, 3).payload)
        return int.from_bytes(item.replies[0].body[1:], "big")

    wire.alive()
    before = memory()
    chance = random.Random(3)
    conversation = wire.session()
    good = conversation.add(RequestKind.CALL, encode_call("echo", [b"x"])).encrypted
    for n in range(3000):
        mail = bytearray(good)
        for _ in range(4):
            mail[chance.randrange(8, len(mail))] = chance.randrange(256)
        wire.channel.sendall(pack(Kind.MAIL, n + 10, bytes(mail)))
        answer = wire.read()
        assert answer.kind == Kind.ERROR
        assert answer.payload in (b"format", b"decryption", b"session")
    for n in range(50):
        wire.channel.sendall(pack(Kind.MAIL, n + 10, bytes(1 << 20)))
        assert wire.read().payload == b"format"
    # KiB; what 3000 refused mails and 50 MiB of junk may leave behind.
    assert memory() - before < 16 * 1024
    # The mail they were made from is still good, once.
    answer = wire.ask(Kind.MAIL, good, 4)
    assert answer.kind == Kind.DONE
    assert answer.payload
    wire.alive()


@pytest.mark.slow
@pytest.mark.spec("T-14", "CHAN-2")
def test_ten_thousand_challenges_before_the_first_answer_is_read(wire: Wire) -> None:
    frames = b"".join(pack(Kind.CHALLENGE, n + 1, n.to_bytes(32, "big")) for n in range(10_000))
    wire.channel.sendall(frames)
    answers = [wire.read() for _ in range(10_000)]
    assert [a.request for a in answers] == list(range(1, 10_001))
    assert len({a.payload[:32] for a in answers}) == 10_000
    wire.alive()


def processor_seconds(process: int) -> float:
    """User and system time of a process and all that descend from it."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(
        map(processor_seconds, map(int, children))
    )


@pytest.mark.slow
@pytest.mark.spec("T-14", "CHAN-2")
def test_a_host_that_does_not_read_is_waited_for_without_work(machine: Path, bundle: Bundle) -> None:
    with wired(machine, bundle) as wire:
        conversation = wire.session()
        item = conversation.add(RequestKind.CALL, encode_call("echo", [bytes(1 << 20)]))
        mail = pack(Kind.MAIL, 5, item.encrypted)
        # A repeated request is answered anew each time, so answers of 1 MiB pile up.
        sent = wire.flood(mail)
        assert 0 < sent < 100
        before = processor_seconds(wire.launched.process.pid)
        time.sleep(1)
        assert processor_seconds(wire.launched.process.pid) - before < 0.5
        # Each answer is one frame, the first and the repeated ones.
        for _ in range(sent):
            frame = wire.read()
            assert frame.kind == Kind.DONE
            assert len(frame.payload) > 1 << 20


@pytest.mark.slow
@pytest.mark.spec("T-02", "T-14", "CHAN-4")
def test_the_same_opening_many_times_and_repeated_request_ids(wire: Wire) -> None:
    conversation = wire.session()
    mail = conversation.add(RequestKind.CALL, encode_call("echo", [b"x"])).encrypted
    replies = set()
    replies.add(wire.ask(Kind.MAIL, mail, 5).payload)
    for _ in range(19):
        reply = wire.ask(Kind.MAIL, mail, 5)
        assert reply.kind == Kind.DONE
        replies.add(reply.payload)
    # The same answer every time, encrypted anew every time; no second session.
    assert len(replies) == 20
    for reply_mail in sorted(replies, key=lambda m: m[24:32]):
        conversation.receive(reply_mail)
    wire.alive()


@pytest.mark.slow
@pytest.mark.spec("T-14")
def test_renewing_without_end(wire: Wire) -> None:
    before = wire.instance
    for _ in range(20):
        wire.instance = wire.result(wire.ask(Kind.RENEW))
    assert wire.instance.claims_digest != before.claims_digest
    wire.alive()


@pytest.mark.slow
@pytest.mark.spec("T-15", "CLM-10")
def test_signatures_harvested_through_the_challenge_are_challenges_only(wire: Wire) -> None:
    claims = wire.instance.claims
    wanted = b"conclave/1 receipt\0" + b"pay the operator"
    for challenge in (bytes(32), wanted[:32].ljust(32, b"\0"), os.urandom(32)):
        answer = wire.ask(Kind.CHALLENGE, challenge).payload
        body, signature = challenge + answer[:32], answer[32:]
        verify_signature(claims.signing_key, "challenge", wire.instance.claims_digest, body, signature)
        for purpose in PURPOSES - {"challenge"}:
            for digest in (wire.instance.claims_digest, _crypto.ZERO_DIGEST):
                with pytest.raises(SignatureError):
                    verify_signature(claims.signing_key, purpose, digest, body, signature)


@pytest.mark.slow
@pytest.mark.spec("T-08", "PLAT-1", "PLAT-2", "PLAT-3", "CLM-1")
def test_a_program_gets_its_own_keys_and_its_own_name_only(
    author: Callable[..., Bundle], serve: Callable[..., HostServer], only: Callable[[Bundle], str]
) -> None:
    from conclave.attestation.dcap import parse_quote

    key, other_key = SigningKey.generate(), SigningKey.generate()
    header = "# /// script\n# [tool.conclave]\n# product-id = %d\n# revocation-level = %d\n# ///\n"
    programs = {
        "victim": author("target", header % (1, 1) + SOURCE, signing_key=key),
        "same author": author("target", header % (1, 1) + SOURCE + "\n# changed\n", signing_key=key),
        "other product": author("target", header % (2, 1) + SOURCE, signing_key=key),
        "older level": author("target", header % (1, 0) + SOURCE, signing_key=key),
        "evil": author("target", header % (1, 1) + SOURCE + "\n# evil\n", signing_key=other_key),
    }
    keys: dict[str, dict[str, bytes]] = {}
    lower: dict[str, dict[str, bytes]] = {}
    for name, bundle in programs.items():
        with serve(bundle) as server, Client(server.url, constraint=only(bundle)) as client:
            own = bundle.manifest.revocation_level

            def key_of(policy: str, context: bytes = b"context", *, level: int = own, via: Client = client) -> bytes:
                return via.call("key", policy, context, level, returns=bytes)

            keys[name] = {policy: key_of(policy) for policy in ("code", "signer", "product")}
            assert key_of("code") == keys[name]["code"]
            assert key_of("code", b"other") != keys[name]["code"]
            assert len(key_of("code", bytes(256))) == 32
            with pytest.raises(CallError):
                key_of("code", bytes(257))
            # Of another level only the keys that older releases of its author have; never a newer one's.
            lower[name] = {p: key_of(p, level=0) for p in ("signer", "product")}
            for policy, level in (("signer", own + 1), ("product", own + 1), ("signer", 65535), ("code", 1 - own)):
                with pytest.raises(CallError):
                    key_of(policy, level=level)
            for payload in (b"signer", b"signer\0", b"signer\0\0", b"", b"\0\0"):
                with pytest.raises(CallError):
                    client.call("ask", payload, returns=bytes)
            # Nothing but the three policies gives a key, least of all another's name.
            for policy in ("", "CODE", "code ", "machine", programs["victim"].code.hex()):
                with pytest.raises(CallError):
                    key_of(policy)
            # It may ask for any report data, but its own name stands beside it.
            victim = programs["victim"]
            quote = parse_quote(client.call("quote", bytes(64), returns=bytes))
            assert (quote.body["config_id"][:32] == victim.bundle_id) == (name == "victim")
    of_victim = keys["victim"]
    assert len(set(of_victim.values())) == 3
    assert keys["same author"]["code"] != of_victim["code"]
    assert keys["same author"]["signer"] == of_victim["signer"]
    assert keys["same author"]["product"] == of_victim["product"]
    assert keys["other product"]["signer"] == of_victim["signer"]
    assert keys["other product"]["product"] != of_victim["product"]
    for name in ("older level", "evil"):
        assert not set(keys[name].values()) & set(of_victim.values())
    older = {policy: keys["older level"][policy] for policy in ("signer", "product")}
    assert lower["victim"] == lower["same author"] == lower["older level"] == older
    assert lower["other product"]["signer"] == older["signer"]
    assert lower["other product"]["product"] != older["product"]
    assert not set(lower["evil"].values()) & set(older.values())


@given(st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(0, 2**64 - 1), st.binary(max_size=300))), st.data())
@pytest.mark.spec("CHAN-2")
def test_any_split_gives_the_same_frames(frames: list[tuple[Kind, int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(pack(*frame) for frame in frames)
    reader, seen, at = FrameReader(Kind), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 400))
        seen += reader.feed(stream[at : at + size])
        at += size
    assert [(f.kind, f.request, f.payload) for f in seen] == frames
    assert not reader.partial


@given(st.binary(max_size=2000))
@pytest.mark.spec("CHAN-1")
def test_any_bytes_give_frames_or_one_error(data: bytes) -> None:
    reader = FrameReader(Kind, max_payload=1000, buffer_size=64)
    try:
        reader.feed(data)
    except FormatError:
        return
    assert len(reader._buffer) <= HEADER.size + 1000


def test_nothing_is_allocated_for_a_claimed_size() -> None:
    reader = FrameReader(Kind)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader.feed(HEADER.pack(MAX_PAYLOAD, 1, bytes(3), 1))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024


def test_our_own_oversized_payload_is_an_error() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        pack(Kind.MAIL, 1, bytes(MAX_PAYLOAD + 1))
