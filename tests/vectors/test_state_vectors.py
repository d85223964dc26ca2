"""Our sealed state agrees with vectors that another program made from the specification."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conclave import _crypto
from conclave._codec import encode
from conclave._crypto import MacKey, Secret
from conclave.errors import Error
from conclave.persistence import log as _log
from conclave.persistence import records
from conclave.persistence.context import BadContext, Context, SignedStatement, make_context, open_context
from conclave.persistence.log import Log
from conclave.persistence.records import (
    Boot,
    Born,
    Change,
    Keys,
    digest_of,
    open_entry,
    pad,
    parse_entry,
    seal_entry,
)
from conclave.persistence.replay import Replay, What
from conclave.persistence.snapshots import Data, Manifest, open_chunk, parse_chunk, seal_chunk

PLACE = Path(__file__).parents[2] / "vectors" / "state"
CASES = {path.stem: json.loads(path.read_text()) for path in sorted(PLACE.glob("*.json"))}
PLAIN = {"id", "spec", "comment", "expect", "stored", "map", "rows", "version", "counter", "level", "floor"}


def load(name: str) -> dict[str, Any]:
    return {k: v if k in PLAIN else bytes.fromhex(v) for k, v in CASES[name].items()}


def named(prefix: str, *, expect: str = "") -> list[str]:
    return [
        n
        for n, c in CASES.items()
        if n.startswith(prefix) and (not expect or (c["expect"] == "ok") == (expect == "ok"))
    ]


def given(case: dict[str, Any]) -> list[tuple[int, bytes]]:
    return [(what, bytes.fromhex(data)) for what, data in case["stored"]]


def restored(case: dict[str, Any]) -> Replay:
    sealing = Secret(case["sealing_key"])
    past = Replay(key=lambda bundle, level: sealing, level=case["level"])
    past.run(given(case))
    return past


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors seal with the same key and nonce as their generator, each time."""
    monkeypatch.setattr(_crypto, "on_encrypt", None)


def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert len(CASES) == 122
    for name in CASES:
        assert (tmp_path / f"{name}.json").read_text() == (PLACE / f"{name}.json").read_text()


@pytest.mark.usefixtures("again")
@pytest.mark.spec("STATE-1", "STATE-4", "STATE-5")
def test_record() -> None:
    case = load("change")
    keys = Keys(Secret(case["boot_key"]))
    entry = parse_entry(case["record"])
    change = open_entry(entry, Change, key=keys.record, log=case["log_id"], previous=case["previous"])
    assert change == Change(map=[("colour", b"red"), ("size", None)])
    assert (entry.version, entry.counter, entry.boot) == (case["version"], case["counter"], None)
    assert pad(change) == case["plaintext"]
    place = {"log": case["log_id"], "version": case["version"], "previous": case["previous"]}
    assert seal_entry(pad(change), key=keys.record, counter=case["counter"], **place) == case["record"]
    assert digest_of(case["record"], **place) == case["digest"]


@pytest.mark.parametrize("name", named("record"))
@pytest.mark.spec("STATE-4", "STATE-5", "STATE-6", "STATE-35")
def test_refused_records(name: str) -> None:
    case = load(name)
    keys = Keys(Secret(case["boot_key"]))
    with pytest.raises(Error) as refused:
        open_entry(parse_entry(case["record"]), Change, key=keys.record, log=case["log_id"], previous=case["previous"])
    assert refused.value.code == case["expect"]


@pytest.mark.usefixtures("again")
@pytest.mark.spec("STATE-3")
def test_wrapped_key() -> None:
    case = load("wrapped")
    boot = Boot.parse(case["part"])
    assert (boot.log, boot.bundle, boot.level, boot.boot) == (
        case["log_id"],
        case["bundle_id"],
        case["level"],
        case["boot"],
    )
    assert boot.wrapped == case["wrapped"]
    assert boot.pack() == case["part"]
    assert boot.unwrap(Secret(case["sealing_key"])).insecure_reveal() == case["boot_key"]
    associated = boot.log + boot.bundle + boot.level.to_bytes(2, "big") + boot.boot
    key, salt = Secret(case["boot_key"]), case["salt"]
    under = Secret(case["sealing_key"])
    assert _crypto._wrap_from_parts(under, records.LABEL_WRAP, key, associated, salt=salt) == case["wrapped"]


def context_key(case: dict[str, Any]) -> MacKey:
    return MacKey(Secret(case["token_key"]).expand(_log.LABEL_CONTEXT_KEY))


@pytest.mark.spec("STATE-20", "STATE-21")
def test_context() -> None:
    case = load("context")
    place = {"log": case["log_id"], "identity": case["identity"]}
    context = open_context(case["context"], context_key(case), **place)
    assert context is not None
    assert context == Context.parse(case["context"])
    assert (context.version, context.boot, context.pack()) == (7, b"\1" * 16, case["context"])
    assert make_context(context_key(case), head=case["context"][:56], **place) == case["context"]


@pytest.mark.parametrize("name", named("context-"))
@pytest.mark.spec("STATE-20", "STATE-21")
def test_other_contexts(name: str) -> None:
    case = load(name)
    place = {"log": case["log_id"], "identity": case["identity"]}
    if case["expect"] == "none":
        assert open_context(case["context"], context_key(case), **place) is None
        return
    with pytest.raises(BadContext) as refused:
        open_context(case["context"], context_key(case), **place)
    assert refused.value.code == case["expect"]


def test_mark() -> None:
    case = load("mark")
    key = MacKey(Secret(case["token_key"]).expand(_log.LABEL_MARK_KEY))
    assert key.tag(b"", case["marked"]) == case["mark"]
    assert key.fits(case["mark"], b"", case["marked"])
    assert not key.fits(case["mark"], b"", case["marked"] + b" ")


@pytest.mark.parametrize("name", named("statement"))
@pytest.mark.spec("STATE-25", "STATE-26")
def test_statements(name: str) -> None:
    case = load(name)
    signed = SignedStatement(case["statement"], case["signature"], case["claims_digest"])
    if case["expect"] != "ok":
        with pytest.raises(Error) as refused:
            signed.verify(case["signing_key"])
        assert refused.value.code == case["expect"]
        return
    said = signed.verify(case["signing_key"])
    assert encode(said) == case["statement"]
    assert (said.state_version, said.refused_version) == (7, 9 if name == "statement-refusing" else None)


@pytest.mark.parametrize("name", named("log-", expect="ok"))
@pytest.mark.spec("STATE-10", "STATE-30")
def test_logs(name: str) -> None:
    case = load(name)
    if case["expect"] == "new":
        assert (restored(case).version, restored(case).token) == (-1, None)
        return
    past = restored(case)
    assert (past.version, past.digest, past.floor) == (case["version"], case["digest"], case["floor"])
    assert past.log_id == case["log_id"]
    assert past.history.encode() == case["history"]
    assert {k: v.hex() for k, v in past.table.current.items()} == case["map"]
    assert {k.hex(): v.hex() for k, v in past.rows.items()} == case["rows"]
    assert past.token is not None
    assert past.anchor is not None
    assert past.token.insecure_reveal() == case["token_key"]
    assert past.anchor.insecure_seed() == case["anchor_seed"]


class Sealer:
    """Opens what is stored, and seals the same again."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.sealing, self.log = Secret(case["sealing_key"]), case["log_id"]
        self.previous = bytes(32)
        self.keys = Keys(self.sealing)

    def part(self, boot: Boot | None) -> bytes:
        if boot is None:
            return b""
        self.keys = Keys(boot.unwrap(self.sealing))
        return boot.pack()

    def chunk(self, data: bytes, kind: type[Data] | type[Manifest]) -> bytes:
        chunk = parse_chunk(data)
        part = self.part(chunk.boot)
        held: Data | Manifest = open_chunk(chunk, kind, key=self.keys.snapshot, log=self.log)
        if isinstance(held, Manifest):
            self.previous = held.digest
        return seal_chunk(
            pad(held),
            key=self.keys.snapshot,
            log=self.log,
            snapshot=chunk.snapshot,
            index=chunk.index,
            version=chunk.version,
            counter=chunk.counter,
            boot=part,
        )

    def entry(self, data: bytes) -> bytes:
        entry = parse_entry(data)
        part = self.part(entry.boot)
        held: object = open_entry(
            entry, Born if part else Change, key=self.keys.record, log=self.log, previous=self.previous
        )
        place = {"log": self.log, "version": entry.version, "previous": self.previous}
        self.previous = digest_of(data, **place)
        return seal_entry(pad(held), key=self.keys.record, counter=entry.counter, boot=part, **place)


@pytest.mark.usefixtures("again")
@pytest.mark.parametrize("name", ["log-records", "log-snapshot", "log-snapshot-early", "log-snapshot-and-more"])
def test_logs_are_sealed_to_the_same_bytes(name: str) -> None:
    case = load(name)
    sealer = Sealer(case)
    for what, data in given(case)[:-1]:
        again = sealer.entry(data) if what == What.ENTRY else sealer.chunk(data, Data if what else Manifest)
        assert again == data
    assert sealer.previous == case["digest"]


@pytest.mark.parametrize("name", [n for n in named("log-") if CASES[n]["expect"] not in ("ok", "new")])
@pytest.mark.spec("STATE-5", "STATE-8", "STATE-11", "STATE-13", "STATE-14", "STATE-24")
@pytest.mark.spec("STATE-30", "STATE-31", "STATE-32", "STATE-33", "STATE-34", "STATE-35", "STATE-36")
def test_refused_logs(name: str) -> None:
    case = load(name)
    with pytest.raises(Error) as refused:
        Log.restore(
            given(case), key=lambda b, lv: Secret(case["sealing_key"]), bundle_id=bytes(32), level=case["level"]
        )
    assert refused.value.code == case["expect"]
    # What was wrong, and what to do.
    assert ";" in str(refused.value)
