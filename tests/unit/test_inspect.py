"""`conclave inspect` explains every artefact, verifies none, and survives all bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests._intel import intel

from conclave.attestation.claims import parse_instance_info
from conclave.bundle import Bundle, build, generate_key, read_bundle, signing_request
from conclave.cli import main
from conclave.cli._inspect import explain
from conclave.client import Client, Identity
from conclave.client._state import ClientState
from conclave.errors import Error
from conclave.testing import HostServer

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "vectors"


def inspect(capsys: pytest.CaptureFixture[str], source: object, *options: str, status: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(source), *options])
    printed = capsys.readouterr()
    assert stopped.value.code == status, printed.err
    return printed.out if status == 0 else printed.err


def facts(capsys: pytest.CaptureFixture[str], source: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(inspect(capsys, source, "--json"))
    assert value["verified"] is False
    assert "NOT verified" in inspect(capsys, source)
    return value


def vector(area: str, case: str, part: str) -> bytes:
    return bytes.fromhex(json.loads((VECTORS / area / f"{case}.json").read_text())[part])


@pytest.fixture(scope="module")
def info() -> bytes:
    return vector("claims", "info", "info")


@pytest.fixture
def built(tmp_path: Path) -> Bundle:
    (tmp_path / "hello.py").write_text((ROOT / "examples" / "hello.py").read_text())
    key = generate_key(tmp_path / "author.key")
    return build(tmp_path / "hello.py", tmp_path / "hello.enclave", signing_key=key)


def test_a_bundle(built: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = facts(capsys, built.path)
    assert said["kind"] == "bundle"
    assert said["code"] == built.code.hex()
    assert said["signer"] == built.signer.hex()
    assert said["author_files"] == ["app/hello.py"]
    assert said["interface"] == hashlib.sha256(built.manifest.interface).hexdigest()
    for shown in ("C: in a constraint", "OMP_NUM_THREADS "):
        assert shown in inspect(capsys, built.path)

    request = tmp_path / "request"
    request.write_bytes(signing_request(built))
    assert facts(capsys, request)["entry"] == "hello:Hello"
    manifest = tmp_path / "manifest"
    manifest.write_bytes(built.manifest_bytes)
    assert facts(capsys, manifest)["kind"] == "manifest"
    signature = tmp_path / "signature"
    signature.write_bytes(built.signature)
    assert facts(capsys, signature)["public_key"] == built.signature[:32].hex()


def test_keys_show_their_public_part_alone(built: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = Identity.generate()
    identity.save(tmp_path / "me")
    assert facts(capsys, tmp_path / "author.key")["signer"] == built.signer.hex()
    assert facts(capsys, tmp_path / "me")["public_key"] == identity.public.hex()
    for name in ("author.key", "me"):
        secret = (tmp_path / name).read_text().split()[1]
        for option in ((), ("--json",)):
            assert secret not in inspect(capsys, tmp_path / name, *option)


def test_a_clients_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ClientState(tmp_path / "state", Identity.generate()).close()
    said = facts(capsys, tmp_path / "state")
    assert (said["kind"], said["format"]) == ("client state", "conclave-state-3")
    assert said["total_bytes"] == (tmp_path / "state").stat().st_size


def test_instance_info_and_its_parts(info: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "info").write_bytes(info)
    said = facts(capsys, tmp_path / "info")
    assert said["kind"] == "instance info"
    assert said["evidence"]["anchor"] == "simulated"
    assert said["evidence_covers_the_claims"] is True
    assert said["evidence_names_the_bundle"] is True
    parts = parse_instance_info(info)
    for name in ("claims", "evidence", "endorsements"):
        (tmp_path / name).write_bytes(getattr(parts, name))
        alone = facts(capsys, tmp_path / name)
        assert {k: alone[k] for k in said[name]} == said[name]


@pytest.mark.parametrize(
    ("case", "broken"),
    [("info-another-key", "evidence_covers_the_claims"), ("info-another-bundle", "evidence_names_the_bundle")],
)
def test_what_does_not_fit_is_said(case: str, broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "info").write_bytes(vector("claims", case, "info"))
    assert facts(capsys, tmp_path / "info")[broken] is False


def test_mail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request").write_bytes(vector("mail", "request", "mail"))
    said = facts(capsys, tmp_path / "request")
    assert (said["direction"], said["counter"], said["opening"]) == ("client to enclave", 0, True)
    (tmp_path / "reply").write_bytes(vector("mail", "reply", "reply"))
    said = facts(capsys, tmp_path / "reply")
    assert (said["direction"], said["opening"]) == ("enclave to client", False)
    assert any(bytes.fromhex(said["reply_salt"]))


def test_a_constraint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"C:{'AB' * 32} EXPIRE:P2W TCB:tdx@2024-03-13"
    said = facts(capsys, line)
    assert said["expanded"].startswith(
        f"C:{'ab' * 32} REVOKE:0 SEC:SECURE EXPIRE:P0Y0M14D TEE:nitro,sgx,snp,tdx RUNTIME:"
    )
    assert said["endorsements_younger_than"] == "0 years, 0 months, 14 days"
    assert (said["minimum_tcb"], said["machines"]) == ({"tdx": "2024-03-13"}, "any")
    (tmp_path / "c.constraint").write_text(line + "\n")
    assert facts(capsys, tmp_path / "c.constraint") == said


def test_a_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text(f"# conclave lock 1 {'0' * 64}\nnumpy==2.1.0 --hash=sha256:{'1' * 64}\n")
    assert facts(capsys, lock)["packages"] == {"numpy": "2.1.0 (1 accepted wheels)"}


@pytest.mark.slow
def test_a_host(serve: Callable[..., HostServer], built: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(built) as server:
        said = facts(capsys, server.url)
        assert said["claims"]["code"] == built.code.hex()
        with Client(server.url, constraint=f"C:{built.code.hex()} SEC:INSECURE") as client:
            assert client.verify().claims_digest.hex() == said["claims"]["claims_digest"]
        assert "status 404" in inspect(capsys, server.url + "/elsewhere", status=1)
    assert "is the host running?" in inspect(capsys, server.url, status=1)


@pytest.mark.parametrize(("version", "body_type"), [(3, 1), (4, 1), (4, 2), (5, 1), (5, 2), (5, 3)])
def test_quotes_of_every_version(version: int, body_type: int, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "quote"
    file.write_bytes(intel(version, body_type).quote())
    said = facts(capsys, file)
    tee, measurement, size = ("SGX", "mrenclave", 32) if body_type == 1 else ("TDX", "mrtd", 48)
    assert said["format"] == f"{tee} ECDSA quote, version {version}"
    assert said[measurement] == bytes(range(size)).hex()
    assert (said["anchor"], said["certificates"], said["debug"]) == ("simulated", 3, False)
    assert said["report_data"] == bytes(range(64)).hex()


def test_endorsements_of_domains(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "endorsements"
    file.write_bytes(intel().endorsements())
    assert facts(capsys, file)["tcb_info_fmspc"] == "00806f050000"


STEERING = "\x1b[31m[bold]\u202e"


def test_nothing_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.lock"
    file.write_text(f"# conclave lock 1 {STEERING}\n")
    for option in ((), ("--json",)):
        shown = inspect(capsys, file, *option)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "[bold]" in shown


def test_a_refusal_does_not_repeat_what_it_read(
    info: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "e"
    parts = json.loads(parse_instance_info(info).endorsements)
    signed = json.loads(parts["tcb_info"]) | {"fmspc": STEERING}
    file.write_text(json.dumps(parts | {"tcb_info": json.dumps(signed)}))
    shown = inspect(capsys, file, status=1)
    assert "-format" in shown
    assert "bold" not in shown


def test_any_bytes_are_explained_or_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = [p for p in (ROOT / "fuzz" / "corpus").rglob("*") if p.is_file()]
    assert len(corpus) > 100
    file = tmp_path / "any"
    refused = 0
    for path in corpus:
        data = path.read_bytes()
        for changed in (data, data[: len(data) // 2], data + b"\0", data[:40] + b"\xff" + data[41:]):
            file.write_bytes(changed)
            try:
                explain(str(file))
            except Error:
                refused += 1
    assert 0 < refused < 4 * len(corpus)
    for source in ("", "C:", "nonsense:", "\0:"):
        assert inspect(capsys, source, status=1).startswith("error")
    file.write_bytes(b"\0" * 17_000_000)
    assert "too large" in inspect(capsys, file, status=1)


def test_a_changed_bundle_is_refused(built: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(built.path.read_bytes())
    data[-200] ^= 1
    built.path.write_bytes(data)
    assert "error (bundle)" in inspect(capsys, built.path, status=1)
    with pytest.raises(Error):
        read_bundle(built.path)
