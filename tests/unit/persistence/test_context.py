"""Contexts, the table of boots, statements."""

from __future__ import annotations

import pytest
from tests._stored import IDENTITY, change, new_log, restore

from conclave._codec import encode
from conclave._crypto import MacKey, Secret, SigningKey
from conclave.errors import FormatError, RollbackError, SignatureError, StateError
from conclave.persistence import context as _context
from conclave.persistence.context import (
    CONTEXT_SIZE,
    MAX_STATEMENT,
    BadContext,
    Context,
    Forked,
    History,
    SignedStatement,
    Statement,
    context_head,
    make_context,
    parse_statement,
)


def boot(number: int) -> bytes:
    return bytes((number,)) * 16


def at(version: int, number: int) -> Context:
    return Context(version, boot(number), bytes(32), bytes(16))


def history(*firsts: int) -> History:
    made = History()
    for number, first in enumerate(firsts, 1):
        made.begin(boot(number), first)
    return made


@pytest.mark.spec("STATE-22")
def test_what_a_history_contains() -> None:
    made = history(0, 4, 5, 9)
    found = {(v, b) for v in range(14) for b in range(6) if made.contains(at(v, b), newest=11)}
    assert found == {(v, 1) for v in range(4)} | {(4, 2)} | {(v, 3) for v in range(5, 9)} | {
        (v, 4) for v in (9, 10, 11)
    }


@pytest.mark.spec("STATE-24")
def test_a_table_of_boots_comes_back() -> None:
    made = history(0, 4, 5, 2**40)
    assert History.parse(made.encode()).encode() == made.encode()
    assert len(made.encode()) == 24 * len(made) == 96
    assert History.parse(made.encode()).boot_of(5) == boot(3)


@pytest.mark.spec("STATE-24")
def test_tables_that_no_log_has() -> None:
    good = history(0, 4).encode()
    for data in (b"", good[:-1], good + b"\0", good[24:], good[:24] * 2, good + good[:24]):
        with pytest.raises(FormatError):
            History.parse(data)


@pytest.mark.spec("STATE-24")
def test_a_log_of_too_many_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _context.MAX_BOOTS == 500_000
    monkeypatch.setattr(_context, "MAX_BOOTS", 3)
    made = history(0, 1, 2)
    with pytest.raises(StateError, match="started 3 times, and is full; begin a new one"):
        made.begin(boot(9), 3)
    assert len(made) == 3
    with pytest.raises(FormatError):
        History.parse(made.encode() + made.encode()[:24])


@pytest.mark.spec("STATE-20", "STATE-21")
def test_a_context_is_one_clients_of_one_log() -> None:
    log, _ = new_log()
    token = log.context(IDENTITY)
    assert len(token) == CONTEXT_SIZE
    assert log.check(token, IDENTITY) == Context.parse(token)
    before = log.version, log.digest
    other, _ = new_log()
    for bad, who in [(token, bytes(32)), (other.context(IDENTITY), IDENTITY), (token[:-1], IDENTITY), (b"", IDENTITY)]:
        with pytest.raises(BadContext) as refused:
            log.check(bad, who)
        assert not isinstance(refused.value, RollbackError)
        assert refused.value.code == "context"
    for bit in range(8 * CONTEXT_SIZE):
        changed = bytearray(token)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadContext):
            log.check(bytes(changed), IDENTITY)
    assert (log.version, log.digest) == before


@pytest.mark.spec("STATE-22")
def test_another_boot_did_not_make_the_newest_version_even_with_its_digest() -> None:
    log, _ = new_log()
    head = context_head(log.version, boot(7), log.digest)
    with pytest.raises(Forked):
        log.check(make_context(log._context_key, log=log.log_id, identity=IDENTITY, head=head), IDENTITY)


@pytest.mark.spec("STATE-23")
def test_the_newest_version_has_one_digest() -> None:
    """A context that this log's key made, of this boot and version, with another digest: proof of a fork."""
    log, entries = new_log()
    log.commit(change(1))
    twin = restore(entries)
    twin.boot, twin._keys = log.boot, twin._keys
    twin.boot_entry()
    assert (twin.boot, twin.version) == (log.boot, log.version)
    with pytest.raises(Forked) as proof:
        log.check(twin.context(IDENTITY), IDENTITY)
    assert (proof.value.context.version, proof.value.context.digest) == (1, twin.digest)
    assert proof.value.code == "rollback"


@pytest.mark.spec("STATE-22")
def test_two_enclaves_from_one_state_know_it_at_the_first_context() -> None:
    log, entries = new_log()
    entries.append(log.commit(change(1)))
    one, two = restore(entries), restore(entries)
    for fork in (one, two):
        fork.boot_entry()
        fork.commit(change(2))
    for here, there in ((one, two), (two, one)):
        assert here.check(here.context(IDENTITY), IDENTITY)
        assert here.check(log.context(IDENTITY), IDENTITY)
        with pytest.raises(Forked):
            here.check(there.context(IDENTITY), IDENTITY)
        # However far it goes on.
        for number in range(5):
            here.commit(change(number))
        with pytest.raises(Forked):
            here.check(there.context(IDENTITY), IDENTITY)


def said(**fields: object) -> Statement:
    facts = {"version": 1, "log_id": bytes(32), "state_version": 4, "boot": boot(1), "digest": bytes(32)}
    refused = {"refused_version": None, "refused_boot": None, "refused_digest": None}
    return Statement(**(facts | refused | fields))  # type: ignore[arg-type]


REFUSING = {"refused_version": 9, "refused_boot": boot(2), "refused_digest": bytes(32)}


@pytest.mark.spec("STATE-25")
def test_statements_come_back() -> None:
    for statement in (said(), said(**REFUSING), said(state_version=2**64 - 1)):
        assert parse_statement(encode(statement)) == statement
        assert len(encode(statement)) < MAX_STATEMENT


@pytest.mark.spec("STATE-25")
@pytest.mark.parametrize(
    "fields",
    [
        {"version": 0},
        {"version": 2},
        {"log_id": bytes(31)},
        {"boot": bytes(17)},
        {"digest": bytes(33)},
        {"state_version": -1},
        {"refused_version": 9},
        {"refused_boot": boot(2)},
        {"refused_digest": bytes(32)},
        *({**REFUSING, name: None} for name in REFUSING),
        {**REFUSING, "refused_version": -1},
        {**REFUSING, "refused_boot": bytes(15)},
        {**REFUSING, "refused_digest": bytes(31)},
    ],
)
def test_statements_that_no_enclave_makes(fields: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        parse_statement(encode(said(**fields)))


@pytest.mark.spec("STATE-26")
def test_a_statement_counts_under_one_key_and_claims() -> None:
    key, claims = SigningKey.generate(), bytes(range(64))
    log, _ = new_log()
    signed = SignedStatement.sign(log.statement(at(7, 2)), key, claims)
    statement = signed.verify(key.public)
    assert (statement.log_id, statement.refused_version, statement.refused_boot) == (log.log_id, 7, boot(2))
    assert signed.instance_info == b""
    others = [
        (SignedStatement(signed.encoded, signed.signature, bytes(64)), key.public),
        (SignedStatement(encode(log.statement()), signed.signature, claims), key.public),
        (SignedStatement(signed.encoded, bytes(64), claims), key.public),
        (SignedStatement(signed.encoded, key.sign("app", claims, signed.encoded), claims), key.public),
        (signed, SigningKey.generate().public),
    ]
    for other, public in others:
        with pytest.raises(SignatureError):
            other.verify(public)
    # Signed, and nonsense.
    with pytest.raises(FormatError):
        SignedStatement(b"\xc0", key.sign("state", claims, b"\xc0"), claims).verify(key.public)


def test_a_mac_key_keeps_its_secret() -> None:
    secret = Secret(b"secret of thirty-two bytes, fixed")
    key = MacKey(secret)
    assert repr(key) == "<MacKey>"
    assert key != MacKey(secret)
    assert key.tag(b"a", b"b") == MacKey(secret).tag(b"a", b"b") == MacKey(secret).tag(b"", b"ab")
    assert len(key.tag(b"a")) == 16
    assert not key.fits(key.tag(b"a")[:15], b"a")
    with pytest.raises(TypeError):
        key.__reduce__()
