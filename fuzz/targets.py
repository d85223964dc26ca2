"""One target for each parser of untrusted bytes. A target lets only documented errors pass."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Final

from conclave._chunkheader import chunk_address, split_chunks, upload_address
from conclave._codec import encode
from conclave._crypto import Secret, SigningKey
from conclave._framing import FrameReader, Kind, PlatformKind
from conclave._mailheader import address_of, parse_mail
from conclave.attestation import Constraint, nvidia, verify_instance
from conclave.attestation._x509 import split_pem
from conclave.attestation.announced import announce, in_force, parse_announcement
from conclave.attestation.claims import parse_claims, parse_instance_info
from conclave.attestation.dcap import parse_endorsements, parse_quote, verify_quote
from conclave.attestation.expiry import expiries
from conclave.attestation.nitro import parse_document, verify_document
from conclave.attestation.nvidia.markup import canonical
from conclave.attestation.nvidia.markup import parse as parse_markup
from conclave.attestation.nvidia.rim import SPACES, parse_rim
from conclave.attestation.rehearse import Enclave
from conclave.attestation.snp import parse_report, verify_report
from conclave.bundle.archive import read_bundle
from conclave.bundle.lockfile import read_lock
from conclave.bundle.manifest import parse_manifest
from conclave.bundle.source import read_source
from conclave.bundle.wheels import members
from conclave.errors import Error
from conclave.host.endorsements import amd, intel
from conclave.host.endorsements.documents import parse_name, read_document
from conclave.host.endorsements.platform import read_platform
from conclave.mail.stream import unpack
from conclave.persistence.context import Context, History, parse_statement
from conclave.persistence.log import Log
from conclave.persistence.records import parse_entry
from conclave.persistence.snapshots import parse_chunk
from conclave.persistence.witness import Anchor, log_id_of, read_answer
from conclave.rpc.interface import decode_call
from conclave.witness.steps import read_advance_request, read_head_request
from fuzz.states import STATES

_NOW: Final = datetime(2026, 3, 2, tzinfo=UTC)
_CONSTRAINT: Final = Constraint.parse("C:" + "10" * 32 + " SEC:INSECURE")
# When the made-up reports and documents of the corpus are valid.
_THEN: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
# Of the corpus: a witness's key, and a log's.
_WITNESS: Final = SigningKey(bytes([3]) * 32).public
_LOG: Final = SigningKey(bytes([1]) * 32).public
_CORPUS: Final = Path(__file__).parent / "corpus"
_PLACE: Final = Path(tempfile.mkdtemp(prefix="conclave-fuzz-"))


def claims(data: bytes) -> None:
    assert encode(parse_claims(data)) == data


def instance_info(data: bytes) -> None:
    with contextlib.suppress(Error):
        parse_instance_info(data)
    verify_instance(data, _CONSTRAINT, now=_NOW)


def quote(data: bytes) -> None:
    parsed = parse_quote(data)
    # As far as what it proves by itself, under the root that it carries.
    anchors = frozenset(hashlib.sha256(c).hexdigest() for c in parsed.chain[-1:])
    verify_quote(parsed, b"", anchors=anchors, now=_NOW)


def endorsements(data: bytes) -> None:
    parse_endorsements(data)


@cache
def _vouched(name: str) -> tuple[bytes, frozenset[str]]:
    """Endorsements of the corpus, and the anchor at the end of their chain."""
    data = (_CORPUS / "snp_endorsements" / name).read_bytes()
    return data, _anchor(split_pem(json.loads(data)["chain"].encode())[-1])


@cache
def _nitro_anchor() -> frozenset[str]:
    return _anchor(parse_document((_CORPUS / "nitro_document" / "enclave").read_bytes()).cabundle[0])


def _anchor(der: bytes) -> frozenset[str]:
    return frozenset({hashlib.sha256(der).hexdigest()})


def snp_report(data: bytes) -> None:
    report = parse_report(data)
    assert report.raw == data
    assert len(report.signature) == 96
    endorsements, anchors = _vouched("milan-vlek" if report.signing_key == "VLEK" else "milan")
    verify_report(report, endorsements, anchors=anchors, now=_THEN)


def snp_endorsements(data: bytes) -> None:
    _, anchors = _vouched("milan")
    report = parse_report((_CORPUS / "snp_report" / "milan").read_bytes())
    verify_report(report, data, anchors=anchors, now=_THEN)


def nitro_document(data: bytes) -> None:
    document = parse_document(data)
    assert document.payload in data
    claims = verify_document(document, anchors=_nitro_anchor(), now=_THEN)
    assert claims.platform == document.module_id


@cache
def _enclave() -> Enclave:
    parts = ((_CORPUS / part / "info").read_bytes() for part in ("quote", "endorsements"))
    return Enclave("fuzzed", "sgx", *parts)


def announcement(data: bytes) -> None:
    found = parse_announcement(data)
    now = (_enclave(),)
    then = announce(now, [found])
    assert in_force(now, then, _NOW) >= _NOW
    assert expiries(then[0])


def _device_chain() -> bytes:
    return (_CORPUS / "nvidia_chain" / "gpu").read_bytes()


@cache
def _manifest_anchor() -> frozenset[str]:
    return _anchor(parse_rim((_CORPUS / "nvidia_manifest" / "driver").read_bytes()).certificates[-1])


def nvidia_report(data: bytes) -> None:
    report = nvidia.parse_report(data)
    assert report.signed + report.signature == data
    anchors = _anchor(split_pem(_device_chain())[-1])
    claims = nvidia.verify_report(report, _device_chain(), nonce=None, anchors=anchors, now=_THEN)
    assert len(claims.measurements) == data[41]


def nvidia_chain(data: bytes) -> None:
    report = nvidia.parse_report((_CORPUS / "nvidia_report" / "gpu").read_bytes())
    anchors = _anchor(split_pem(_device_chain())[-1])
    nvidia.verify_report(report, data, nonce=None, anchors=anchors, now=_THEN)


def nvidia_manifest(data: bytes) -> None:
    with contextlib.suppress(Error):
        content = parse_rim(data).content
        # The canonical form is a document, and its own canonical form; quotes and `>` it writes as references.
        assert b"&" in content or canonical(parse_markup(content, spaces=SPACES)) == content
    assert nvidia.verify_rim(data, anchors=_manifest_anchor(), now=_THEN).entries


def pem(data: bytes) -> None:
    assert len(split_pem(data)) <= 8


def constraint(data: bytes) -> None:
    parsed = Constraint.parse(data.decode("utf-8", "replace"))
    assert Constraint.parse(str(parsed)) == parsed


def mail(data: bytes) -> None:
    address = address_of(data)
    parsed = parse_mail(data)
    assert (parsed.direction, parsed.session_id, parsed.counter, bool(parsed.opening)) == address
    assert parsed.associated + parsed.ciphertext == data


def chunks(data: bytes) -> None:
    session_id, counter = upload_address(data)
    found = [bytes(chunk) for chunk in split_chunks(memoryview(data))]
    assert all(chunk_address(chunk)[:3] == (1, session_id, counter) for chunk in found)
    assert b"".join(len(chunk).to_bytes(4, "big") + chunk for chunk in found) == data


def packed(data: bytes) -> None:
    assert b"".join(len(item).to_bytes(4, "big") + item for item in unpack(data)) == data


def frames(data: bytes) -> None:
    for kinds in (Kind, PlatformKind):
        byte_by_byte = _frames(kinds, [data[at : at + 1] for at in range(len(data))])
        assert byte_by_byte == _frames(kinds, [data])


def _frames(kinds: type[IntEnum], parts: list[bytes]) -> object:
    """The frames, or the error that ended the stream."""
    reader = FrameReader(kinds, max_payload=4096)
    try:
        return [frame for part in parts for frame in reader.feed(part)]
    except Error as error:
        return str(error)


def call(data: bytes) -> None:
    decode_call(data)


def manifest(data: bytes) -> None:
    assert parse_manifest(data).encode() == data


def archive(data: bytes) -> None:
    path = _PLACE / "fuzzed.enclave"
    path.write_bytes(data)
    read_bundle(path)


def wheel(data: bytes) -> None:
    for name, _ in members(data, "fuzzed-1-py3-none-any.whl"):
        assert ".." not in name.split("/")
        assert not name.startswith("/")


def source(data: bytes) -> None:
    path = _PLACE / "fuzzed.py"
    path.write_bytes(data)
    read_source(path)


def lock(data: bytes) -> None:
    path = _PLACE / "locked.py"
    path.write_bytes(b"")
    path.with_suffix(".lock").write_bytes(data)
    read_lock(read_source(path))


_KINDS: Final = ("sgx", "tdx", "snp")
_DOCUMENTS: Final = tuple(
    parse_name(name)
    for name in (
        "intel-root-crl",
        "intel-pck-crl-platform",
        "intel-sgx-tcb-000000000000-standard",
        "intel-sgx-qe-standard",
        f"amd-vcek-milan-{bytes(range(1, 65)).hex()}-04010000000018db",
        "amd-vcek-milan-chain",
        "amd-vcek-milan-crl",
    )
)


def fetched(data: bytes) -> None:
    """The first byte says as what the rest is read: evidence, a document, hints, an answer of Intel's."""
    kind, rest = data[0] % 12 if data else 0, data[1:]
    if kind < 3:
        str(read_platform(rest, _KINDS[kind]))
    elif kind < 10:
        body, _, chain = rest.partition(b"\0\0\0\0")
        read_document(_DOCUMENTS[kind - 3], body, chain, fetched=_NOW)
    elif kind == 10:
        amd.parts(rest, fetched=_NOW)
    else:
        header = {"SGX-PCK-CRL-Issuer-Chain": rest[:2000].decode("latin-1")}
        intel.read_answer(_DOCUMENTS[1], rest, header)


def record(data: bytes) -> None:
    entry = parse_entry(data)
    assert entry.data == data
    assert entry.boot is None or entry.boot.pack() == data[28 : entry.head]


def snapshot(data: bytes) -> None:
    chunk = parse_chunk(data)
    assert (chunk.index == 0) == (chunk.boot is not None)
    assert chunk.boot is None or chunk.boot.pack() == data[48:210]


def told(data: bytes) -> None:
    """A context, a statement, a table of boots: each is the bytes it was read from."""
    with contextlib.suppress(Error):
        found = Context.parse(data)
        assert (found.pack() if found else bytes(72)) == data
    with contextlib.suppress(Error):
        assert encode(parse_statement(data)) == data
    assert History.parse(data).encode() == data


# Under which the vectors of sealed state are sealed.
_SEALING: Final = Secret(bytes(range(200, 232)))


def stored(data: bytes) -> None:
    """All that a host gives at a start: `what (1) ‖ size (4) ‖ bytes` each."""
    given = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        given.append((data[0], data[5 : 5 + size]))
        data = data[5 + size :]
    log = Log.restore(given, key=lambda bundle, level: _SEALING, bundle_id=bytes(32), level=3)
    log.boot_entry()


def witnessed(data: bytes) -> None:
    """What enclaves and witnesses say to one another, at either end, and what clients get of it."""
    with contextlib.suppress(Error):
        assert encode(read_head_request(data)) == data
    with contextlib.suppress(Error):
        assert encode(read_advance_request(data)) == data
    with contextlib.suppress(Error):
        read_answer(data, key=_WITNESS, log_key=_LOG, nonce=bytes(range(32)))
    anchor = Anchor.parse(data)
    assert anchor.encode() == data
    anchor.verify({"a": _WITNESS.hex()}, 1, log_id=log_id_of(_LOG), version=0)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    f.__name__: f
    for f in (
        claims, instance_info, quote, endorsements, pem, constraint, mail, frames, call, manifest, archive, wheel,
        source, lock, fetched, snp_report, snp_endorsements, nitro_document, announcement,
        nvidia_report, nvidia_chain, nvidia_manifest, chunks, packed, record, snapshot, told, stored,
        witnessed,
    )
} | STATES  # fmt: skip
