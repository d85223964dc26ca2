"""Writes the first corpus from the vectors and from the smallest things of each kind."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from urllib.parse import quote

import msgspec
from tests._amd import Amd
from tests._aws import Aws, emulated, nitrotpm
from tests._intel import intel
from tests._nvidia import Manifest, Nvidia, entry, pem
from tests._vendors import amd_platform

from fuzz.engine import CORPUS

VECTORS = CORPUS.parents[1] / "vectors"
FIELDS = {
    "claims": {"encoding": ("claims",), "info": ("instance_info",)},
    "mail": {"mail": ("mail",), "reply": ("mail",)},
    "bundle": {"archive": ("archive",), "manifest": ("manifest",)},
    "constraint": {"text": ("constraint",)},
    "witness": {"data": ("witnessed",)},
}


def keep(target: str, name: str, data: bytes) -> None:
    place = CORPUS / target
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(data)


def states() -> None:
    none = 2**64 - 1
    for name, fields in {
        "mail": (0, 0, 0, 4, 1, 0, 0, 0),
        "call": (1, 1, 0, 4, 1, 1, 0, 0),
        "acknowledge": (2, 0, 0, 0, none, 1, 0, 0),
        "gap": (0, 0, 0, 4, 9, 0, 0, 0),
    }.items():
        keep("mailbox", name, struct.pack(">BBHIQQQQ", *fields) + b"body")
    for name, fields in {
        "last": (0, 1, 0, 4, 1, 1, 0, 2),
        "posted": (0, 0, 0, 4, 1, 1, none, 0),
        "refused": (3, 1, 0, 0, none, 1, 1, 5),
        "result": (1, 1, 0, 4, 2, 2, 1, 1),
    }.items():
        keep("conversation", name, struct.pack(">BBHIQQQQ", *fields) + b"body")
    keep("arguments", "all", msgspec.msgpack.encode([1, ["a"], {"b": 1.5, "c": None}, b"d"]))
    keep("arguments", "few", msgspec.msgpack.encode([1, [], {}]))
    headers = [[b"host", b"app"], [b"content-length", b"4"]]
    head = {"method": "POST", "path": b"/a%20b", "query": b"x=1", "headers": headers}
    keep("request_head", "post", msgspec.msgpack.encode([head, b"body"]))
    keep("request_head", "least", msgspec.msgpack.encode([{**head, "path": b"*", "query": b"", "headers": []}, b""]))
    made = msgspec.msgpack.encode({"status": 200, "headers": [[b"content-type", b"text/plain"]]})
    keep("response_head", "ok", len(made).to_bytes(4, "big") + made + b"body")
    keep("result", "map", msgspec.msgpack.encode({"a": [1, 2]}))
    keep("result", "failure", msgspec.msgpack.encode({"type": "Closed", "message": "on Sunday"}))
    chunk = bytes.fromhex(json.loads((VECTORS / "mail" / "chunk.json").read_text())["chunk"])
    keep("chunks", "two", 2 * (len(chunk).to_bytes(4, "big") + chunk))
    keep("packed", "two", b"\0\0\0\3abc\0\0\0\0")
    keep("mails", "two", b"\0\0\0\3abc\0\0\0\1d")
    keep("keys", "author", b"conclave-author-key-1 " + b"5f" * 32 + b"\n")
    keep("keys", "identity", b"conclave-identity-1 " + b"5f" * 32 + b"\n")
    for line in (
        "POST mail  CML1",
        "GET instance",
        "GET health",
        "POST challenge  " + "n" * 32,
        "POST outbox/" + "0" * 32 + "  " + "c" * 32,
    ):
        keep("http", line.split()[1].partition("/")[0], line.encode())
    keep("http", "read", b"GET outbox after=1&wait=0")
    keep("http", "delete", b"DELETE outbox below=1")
    keep("http", "sender", b"GET instance/" + b"0" * 128)
    vector = json.loads((VECTORS / "post" / "posted.json").read_text())
    mail = bytes.fromhex(vector["mail"])
    keep("posted", "mail", mail)
    keep("posted", "address", bytes.fromhex(vector["address"]))
    inside = struct.pack(">BBHIQQ32s255sx64s", 0, 1, 0, 4, 1, 0, bytes(32), b"t", bytes(64)) + b"body"
    keep("posted", "inside", inside)
    keep("posted", "answer", (1).to_bytes(8, "big") + (3).to_bytes(4, "big") + b"abc")
    keep("outbox", "blob", b"CMO1" + bytes(8) + (1).to_bytes(8, "big") + len(mail).to_bytes(4, "big") + mail)
    keep("outbox", "frame", len(mail).to_bytes(4, "big") + mail)
    keep("outbox", "room", b"\1" + bytes(32))
    keep("inspect", "constraint", b"C:" + b"5f" * 32 + b" EXPIRE:P1M SEC:INSECURE TEE:simulated")
    keep("inspect", "lock", b"# conclave lock 1 " + b"0" * 64 + b"\nnumpy==2 --hash=sha256:" + b"1" * 64 + b"\n")
    keep("inspect", "identity", b"conclave-identity-1 " + b"5f" * 32 + b"\n")
    for area, case, field in (
        ("mail", "reply", "reply"),
        ("claims", "signed", "encoding"),
        ("bundle", "signed", "archive"),
    ):
        vector = json.loads((VECTORS / area / f"{case}.json").read_text())
        keep("inspect", f"{area}-{case}", bytes.fromhex(vector[field]))
    keep("inspect", "info", bytes.fromhex(json.loads((VECTORS / "claims" / "info.json").read_text())["info"]))


def sealed_state() -> None:
    """Records, snapshots and whole stores of the vectors; what may be inside them."""
    for path in sorted((VECTORS / "state").glob("*.json")):
        vector = json.loads(path.read_text())
        if "record" in vector:
            keep("record", path.stem, bytes.fromhex(vector["record"]))
        for field in ("context", "statement"):
            if field in vector:
                keep("told", path.stem, bytes.fromhex(vector[field]))
        given = [(what, bytes.fromhex(data)) for what, data in vector.get("stored", ())]
        if vector["expect"] == "ok" and given:
            framed = b"".join(struct.pack(">BI", what, len(data)) + data for what, data in given)
            keep("stored", path.stem, framed)
            for number, (what, data) in enumerate(given[:-1]):
                keep("record" if what == 2 else "snapshot", f"{path.stem}-{number}", data)
    keep("told", "history", bytes.fromhex(json.loads((VECTORS / "state" / "log-records.json").read_text())["history"]))
    change = [[["key", b"value"], ["gone", None]], [[b"row", b"value"]], [[bytes(16), 1, bytes(32)]], 1_800_000_000]
    history = bytes(16) + bytes(8)
    for kind, (name, value) in enumerate(
        (
            ("first", [change, bytes(32), bytes(32)]),
            ("change", change),
            ("manifest", [0, bytes(32), history, bytes(32), bytes(32), 1]),
            ("chunk", [{"a": b"1", "b": b"2"}, {b"row": b"value"}]),
        )
    ):
        keep("sealed", name, bytes((kind,)) + msgspec.msgpack.encode(value))


def evidence() -> None:
    """Made-up reports and documents. Their keys are random, so what is there stays."""
    if (CORPUS / "nitro_document").exists():
        return
    milan, vlek = Amd(), Amd(kind="VLEK")
    keep("snp_report", "milan", milan.report())
    keep("snp_report", "milan-2", milan.but(fields={"version": 2}).report())
    keep("snp_report", "milan-vlek", vlek.report())
    keep("snp_report", "turin-5", Amd("Turin", fields={"version": 5, "launch_mit_vector": 1}).report())
    keep("snp_report", "unsigned", milan.but(fields={"key_info": 28}).report())
    keep("snp_endorsements", "milan", milan.endorsements())
    keep("snp_endorsements", "milan-list", milan.but(crl={"revoked": (5,)}).endorsements())
    keep("snp_endorsements", "milan-vlek", vlek.endorsements())
    keep("snp_endorsements", "turin", Amd("Turin").endorsements())
    enclave = Aws(members={"nonce": b"nonce", "user_data": b""})
    keep("nitro_document", "enclave", enclave.document())
    keep("nitro_document", "tagged", enclave.but(tagged=True).document())
    keep("nitro_document", "open", enclave.but(payload=b"\xbf" + enclave.payload_bytes()[1:] + b"\xff").document())
    keep("nitro_document", "nitrotpm", nitrotpm().document())
    keep("nitro_document", "emulated", emulated().document())


def intel_evidence() -> None:
    """Kept once: their signatures are random."""
    if (CORPUS / "endorsements" / "tdx").exists():
        return
    for version, body_type in ((4, 1), (4, 2), (5, 1), (5, 3)):
        keep("quote", f"version-{version}-body-{body_type}", intel(version, body_type).quote())
    for kind, size in ((1, 36), (3, 404)):
        keep("quote", f"names-processor-{kind}", intel(4, 2).but(certification=(kind, bytes(size))).quote())
    keep("endorsements", "tdx", intel(5, 3).endorsements())


def fetched(info: dict[str, bytes]) -> None:
    parts = json.loads(info["endorsements"])
    chain = b"\0\0\0\0" + parts["tcb_info_issuer_chain"].encode()
    platform = amd_platform()
    hints = {"certificate": platform.certificate.hex(), "chain": platform.chain, "crl": platform.crl.hex()}
    for name, kind, data in (
        ("quote", 0, info["evidence"].rstrip(b"\0")),
        ("report", 2, platform.evidence),
        ("root-list", 3, bytes.fromhex(parts["root_ca_crl"])),
        ("pck-list", 4, bytes.fromhex(parts["pck_crl"]) + b"\0\0\0\0" + parts["pck_crl_issuer_chain"].encode()),
        ("tcb", 5, f'{{"tcbInfo":{parts["tcb_info"]},"signature":"{"0" * 128}"}}'.encode() + chain),
        ("identity", 6, f'{{"enclaveIdentity":{parts["qe_identity"]},"signature":"{"0" * 128}"}}'.encode() + chain),
        ("certificate", 7, platform.certificate),
        ("chain", 8, platform.chain.encode()),
        ("list", 9, platform.crl),
        ("hints", 10, json.dumps(hints).encode()),
        ("header", 11, quote(parts["pck_crl_issuer_chain"]).encode()),
    ):
        keep("fetched", name, bytes((kind,)) + data)


def announcements(endorsements: bytes) -> None:
    """What the vendor of the vectors' machine would have published early."""
    members = json.loads(endorsements)
    for name, outer in (("tcb_info", "tcbInfo"), ("qe_identity", "enclaveIdentity")):
        body = f'{{"{outer}":{members[name]},"signature":"{members[f"{name}_signature"]}"}}'
        keep("announcement", name, body.encode())
        header = "TCB-Info-Issuer-Chain" if name == "tcb_info" else "SGX-Enclave-Identity-Issuer-Chain"
        head = f"HTTP/1.1 200 OK\r\n{header}: {quote(members[f'{name}_issuer_chain'])}\r\n\r\n"
        keep("announcement", f"{name}-with-head", (head + body).encode())
    keep("announcement", "whole", endorsements)


def nvidia() -> None:
    """Made-up reports and manifests, which stay for the same reason."""
    if (CORPUS / "nvidia_report").exists():
        return
    # Few blocks and measurements, so that a change more often hits something else.
    few = dict.fromkeys(range(4, 65))
    devices = {"gpu": Nvidia(blocks=few), "blackwell": Nvidia("GB100"), "switch": Nvidia("LS_10", blocks=few)}
    for name, device in devices.items():
        keep("nvidia_report", name, device.report())
        keep("nvidia_chain", name, pem(device.certificates()))
    said = {34: b"\1\0", 36: b"\2\0", 22: bytes(16), 99: b"x"}
    keep("nvidia_report", "mode", Nvidia(fields=said, blocks=few).report())
    keep("nvidia_manifest", "driver", Manifest().xml())
    empty = Manifest(written=lambda text: text.replace("></ns0:Resource>", "/>").replace("></ds:Transform>", " />"))
    keep("nvidia_manifest", "empty-elements", empty.xml())
    keep("nvidia_manifest", "switch", Manifest(edition="SWITCH", product="LS10", entries=(entry(0),)).xml())
    keep("nvidia_manifest", "unsigned", Manifest(signer="other").xml())


def main() -> None:
    for area, fields in FIELDS.items():
        for path in sorted((VECTORS / area).glob("*.json")):
            vector = json.loads(path.read_text())
            for field, targets in fields.items():
                if isinstance(vector.get(field), str):
                    data = vector[field].encode() if field == "text" else bytes.fromhex(vector[field])
                    if len(data) < 20_000:
                        for target in targets:
                            keep(target, path.stem, data)
    states()
    sealed_state()
    evidence()
    nvidia()
    info = msgspec.msgpack.decode(bytes.fromhex(json.loads((VECTORS / "claims" / "info.json").read_text())["info"]))
    fetched(info)
    keep("quote", "info", info["evidence"])
    keep("endorsements", "info", info["endorsements"])
    intel_evidence()
    announcements(info["endorsements"])
    start = info["evidence"].find(b"-----BEGIN")
    keep("pem", "chain", info["evidence"][start:].rstrip(b"\0"))
    frames = [struct.pack(">IB3sQ", 3, kind, bytes(3), kind) + b"abc" for kind in range(1, 12)]
    keep("frames", "each", b"".join(frames))
    for kind, frame in enumerate(frames):
        keep("frames", f"kind-{kind + 1}", frame)
    keep("call", "echo", msgspec.msgpack.encode(["echo", [b"data", 1, "text"]]))
    keep("call", "none", msgspec.msgpack.encode(["none", []]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in ("thing/__init__.py", "thing-1.dist-info/METADATA", "thing-1.dist-info/RECORD"):
            wheel.writestr(zipfile.ZipInfo(name), "content " * 20)
    keep("wheel", "small", buffer.getvalue())
    broken = bytearray(buffer.getvalue())
    broken[30 + len("thing/__init__.py") : 34 + len("thing/__init__.py")] = b"\xff" * 4
    keep("wheel", "found-broken-stream", bytes(broken))
    header = '# /// script\n# dependencies = ["numpy"]\n# [tool.conclave]\n# product-id = 1\n# roster = ["00"]\n# ///\n'
    keep("source", "declared", header.encode() + b"class Small: ...\n")
    empty = "# conclave lock 1 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
    keep("lock", "one", f"{empty}numpy==2.4.6 \\\n    --hash=sha256:{'ab' * 32}\n".encode())
    keep("lock", "found-not-utf-8", empty.encode() + b"\x80")
    keep("lock", "none", empty.encode())


if __name__ == "__main__":
    main()
