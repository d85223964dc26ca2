"""Our posted mail agrees with vectors that another program made from the specification."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conclave import _crypto
from conclave._crypto import DecryptionKey, Secret, SigningKey
from conclave.errors import Error
from conclave.mail.post import Address, Post, _make_from_parts, box_id, open_post, parse_address

PLACE = Path(__file__).parents[2] / "vectors" / "post"
CASES = sorted(path.stem for path in PLACE.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    text = json.loads((PLACE / f"{name}.json").read_text())
    plain = ("id", "spec", "comment", "expect")
    return {k: v if k in plain else bytes.fromhex(v) for k, v in text.items()}


def key_of(case: dict[str, Any]) -> DecryptionKey:
    return DecryptionKey(case["mlkem_seed"], case["x25519_private"])


def opened(case: dict[str, Any]) -> Post:
    post = open_post(case["mail"], key=key_of(case), identity=case["identity"])
    assert post.claims_digest == case["claims_digest"]
    post.check_sender(case["signing_key"])
    return post


def test_the_generator_gives_the_committed_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PLACE / "generate.py"), str(tmp_path)], check=True)
    assert len(CASES) == 20
    for name in CASES:
        assert (tmp_path / f"{name}.json").read_text() == (PLACE / f"{name}.json").read_text()


@pytest.mark.parametrize("name", [n for n in CASES if load(n)["expect"] != "ok"])
@pytest.mark.spec("MAIL-30")
def test_refused(name: str) -> None:
    case = load(name)
    with pytest.raises(Error) as refused:
        opened(case)
    assert refused.value.code == case["expect"]


@pytest.mark.spec("MAIL-30", "MAIL-37", "MAIL-70")
@pytest.mark.parametrize("name", ["posted", "log"])
def test_posted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    case = load(name)
    post = opened(case)
    assert post.context == case.get("context", b"")
    assert (post.topic.encode(), post.envelope, post.body) == (case["topic"], case["envelope"], case["body"])
    assert post.number == int.from_bytes(case["number"], "big")
    assert post.acknowledged == int.from_bytes(case["acknowledged"], "big")
    public = key_of(case).public
    assert box_id(public) == case["box"]
    address = parse_address(case["address"])
    assert address == Address(case["identity"], public, case["topic"].decode())
    # And made again it is the same, key and nonce included.
    monkeypatch.setattr(_crypto, "on_encrypt", None)
    again = _make_from_parts(
        address,
        case["body"],
        number=post.number,
        acknowledged=post.acknowledged,
        signer=SigningKey(case["signing_seed"]),
        claims_digest=case["claims_digest"],
        size=1024,
        envelope=case["envelope"],
        context=post.context,
        secret=Secret(case["secret"]),
        sealed=case["sealed"],
    )
    assert again == case["mail"]
