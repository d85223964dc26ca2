"""Our mail agrees with vectors that another program made from the specification."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests._chunks import seal

from conclave import _crypto
from conclave._crypto import AeadKey, DecryptionKey, Secret, SigningKey
from conclave._mailheader import parse_mail
from conclave.errors import Error
from conclave.mail import ClientSession, Reply, ReplyKind, RequestKind
from conclave.mail._wire import Request
from conclave.mail.contexts import Contexts
from conclave.mail.session import EnclaveSession
from conclave.mail.stream import ChunkSealer, Items, Packer

PLACE = Path(__file__).parents[2] / "vectors" / "mail"
CASES = sorted(path.stem for path in PLACE.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    text = json.loads((PLACE / f"{name}.json").read_text())
    plain = ("id", "spec", "comment", "expect")
    return {k: v if k in plain else bytes.fromhex(v) for k, v in text.items()}


@pytest.fixture(autouse=True)
def _no_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    # Vectors use their keys and nonces again on purpose.
    monkeypatch.setattr(_crypto, "on_encrypt", None)


def client(case: dict[str, Any]) -> ClientSession:
    key = DecryptionKey(case["mlkem_seed"], case["x25519_private"])
    return ClientSession(
        claims_digest=case["claims_digest"],
        encryption_key=key.public,
        identity=SigningKey(case["identity_seed"]),
        reply_key=key.public,
        topic=case["topic"].decode(),
        log_id=case.get("log_id"),
        contexts=Contexts(),
        _secret=Secret(case["secret"]),
        _sealed=case["sealed"],
    )


def receive(case: dict[str, Any], data: bytes) -> Request:
    mail = parse_mail(data)
    key = DecryptionKey(case["mlkem_seed"], case["x25519_private"])
    log_id = case.get("log_id")
    opening = mail.opening or parse_mail(load("log-request" if log_id else "request")["mail"]).opening
    context = None if log_id is None else lambda _identity: load("log-reply")["context"]
    session = EnclaveSession(opening, key=key, claims_digest=case["claims_digest"], log_id=log_id, context=context)
    assert session.identity == SigningKey(case["identity_seed"]).public
    assert session.topic == case["topic"].decode()
    return session.decrypt(mail)


def test_all_cases_are_here() -> None:
    assert len(CASES) == 30


def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    for name in CASES:
        assert (tmp_path / f"{name}.json").read_text() == (PLACE / f"{name}.json").read_text()


@pytest.mark.parametrize("name", [n for n in CASES if load(n)["expect"] != "ok" and "mail" in load(n)])
@pytest.mark.spec("MAIL-3", "MAIL-4", "MAIL-57", "MAIL-58")
def test_refused(name: str) -> None:
    case = load(name)
    with pytest.raises(Error) as refused:
        receive(case, case["mail"])
    assert refused.value.code == case["expect"]


@pytest.mark.parametrize("name", ["chunk", "chunk-renumbered", "chunk-flag", "chunk-packed", "chunk-packed-cut"])
@pytest.mark.spec("MAIL-21", "MAIL-24")
def test_chunks(name: str) -> None:
    case = load(name)
    key = DecryptionKey(case["mlkem_seed"], case["x25519_private"])
    opening = parse_mail(load("request")["mail"]).opening
    opener = EnclaveSession(opening, key=key, claims_digest=case["claims_digest"]).stream_opener(5)
    if case["expect"] != "ok":
        with pytest.raises(Error) as refused:
            Items().add(opener.open(case["chunk"]))
        assert refused.value.code == case["expect"]
        return
    chunk = opener.open(case["chunk"])
    items = [case["body"]] if name == "chunk" else [case["body"][:2], case["body"][2:]]
    assert Items().add(chunk) == items
    assert (chunk.final, chunk.item, chunk.error) == (False, True, False)
    packer = Packer()
    for item in items:
        packer.add(item)
    content, item_ends, packed = packer.next()
    assert item_ends
    session = client(case)
    place = {"direction": 1, "session_id": session.session_id, "counter": 5}
    assert seal(ChunkSealer(session._send, **place), content, item=True, packed=packed) == case["chunk"]  # type: ignore[arg-type]


def test_request_and_second() -> None:
    session = client(load("request"))
    for number, name in enumerate(("request", "second")):
        case = load(name)
        request = receive(case, case["mail"])
        assert (request.kind, request.sequence, request.acknowledged) == (RequestKind.MAIL, number, number)
        assert (request.body, request.envelope) == (case["body"], case["envelope"])
        assert session.session_id == case["session_id"]
        # The same inputs give the same bytes.
        assert session.encrypt(request) == case["mail"]
        session.decrypt(load("reply")["reply"]) if number == 0 else None


@pytest.mark.spec("MAIL-58", "MAIL-63")
def test_mails_of_a_session_with_a_log() -> None:
    session = client(load("log-request"))
    for number, name in enumerate(("log-request", "log-second")):
        case = load(name)
        request = receive(case, case["mail"])
        assert (request.sequence, request.context, request.body) == (number, case["context"], case["body"])
        assert session.encrypt(request) == case["mail"]
        session.decrypt(load("log-reply")["reply"]) if number == 0 else None


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("log-") and "reply" in load(n)])
@pytest.mark.spec("MAIL-58", "MAIL-59", "MAIL-60", "MAIL-67")
def test_replies_of_a_session_with_a_log(name: str) -> None:
    case = load(name)
    session = client(case)
    if case["expect"] != "ok":
        with pytest.raises(Error) as refused:
            session.decrypt(case["reply"])
        assert refused.value.code == case["expect"]
        return
    reply = session.decrypt(case["reply"])
    assert (reply.body, reply.context, reply.echo) == (
        case["body"],
        case["context"],
        int.from_bytes(case["echo"], "big"),
    )
    # And made again it is the same: only the context is the session's own.
    opening = parse_mail(load("log-request")["mail"]).opening
    key = DecryptionKey(case["mlkem_seed"], case["x25519_private"])
    again = EnclaveSession(
        opening,
        key=key,
        claims_digest=case["claims_digest"],
        log_id=case["log_id"],
        context=lambda _identity: load("log-reply")["context"],
    )
    again._salt, again._send = parse_mail(case["reply"]).reply_salt, AeadKey(Secret(case["k_e2c"]))
    assert again.encrypt(reply) == case["reply"]
    assert reply.kind in (ReplyKind.MAIL, ReplyKind.HALTED, ReplyKind.STATEMENT, ReplyKind.CONTEXT)


def test_reply() -> None:
    case = load("reply")
    reply = client(case).decrypt(case["reply"])
    assert reply == Reply(0, 1, 0, 1, 0, 1, case["body"], case["envelope"])
