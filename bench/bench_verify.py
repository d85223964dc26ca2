"""Verification of instance info and the opening of a session, against what they replace.

`verify`: `verify_instance` on the instance info of vectors/claims/info.json, against
dcap-qvl alone on the same quote and endorsements: the library that does the
cryptography, without the trust anchor, bindings, canonical form and policy.

`opening`: the first mail of a session and its first reply. `client`: making the
session, encrypting a request of 1 KiB, decrypting the reply. `enclave`: accepting the
opening, decrypting, encrypting the reply. Against a full TLS 1.3 handshake (X25519,
P-256 certificate of one link) with the same bytes, over memory buffers.

Processor time of this one process, a side at a time; rounds take all in turn.
"""

from __future__ import annotations

import json
import ssl
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import dcap_qvl
from _common import HERE, certificate, emit, middle, trust

from conclave._crypto import DecryptionKey, SigningKey
from conclave.attestation import Constraint, verify_instance
from conclave.attestation.claims import parse_instance_info
from conclave.attestation.dcap import parse_quote
from conclave.mail import ClientSession, Mailbox, Reply, ReplyKind, Request, RequestKind

ROUNDS = 15
EACH = 40
BODY = bytes(1024)
DIGEST = bytes(64)


def cpu_ms(work: Callable[[], object]) -> float:
    """Processor milliseconds of one call."""
    began = time.process_time()
    for _ in range(EACH):
        work()
    return (time.process_time() - began) / EACH * 1e3


def collateral(parts: dict[str, str]) -> object:
    """Endorsements in dcap-qvl's form."""
    binary = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")
    return dcap_qvl.QuoteCollateralV3(**{k: bytes.fromhex(v) if k in binary else v for k, v in parts.items()})


class Verification:
    """Both ways to verify one quote."""

    def __init__(self) -> None:
        vector = json.loads((HERE.parent / "vectors" / "claims" / "info.json").read_text())
        self._info = bytes.fromhex(vector["info"])
        self._constraint = Constraint.parse(vector["constraint"])
        self._now = datetime.fromisoformat(vector["now"])
        parts = parse_instance_info(self._info)
        self._quote = parts.evidence
        self._root = parse_quote(parts.evidence).chain[-1]
        self._endorsements = collateral(json.loads(parts.endorsements))

    def ours(self) -> object:
        return verify_instance(self._info, self._constraint, now=self._now)

    def theirs(self) -> object:
        return dcap_qvl.verify_with_root_ca(self._quote, self._endorsements, self._root, int(self._now.timestamp()))


class Opening:
    """The two ends of a first exchange by mail, timed apart."""

    def __init__(self) -> None:
        self._key = DecryptionKey.generate()
        self._reply_key = DecryptionKey.generate().public
        self._identity = SigningKey.generate()

    def once(self, spent: dict[str, float]) -> None:
        clock = time.process_time
        began = clock()
        client = ClientSession(
            claims_digest=DIGEST,
            encryption_key=self._key.public,
            identity=self._identity,
            reply_key=self._reply_key,
            topic="default",
        )
        mail = client.encrypt(Request(RequestKind.CALL, 0, 0, 0, BODY))
        spent["client"] += clock() - began
        began = clock()
        box = Mailbox(key=self._key, claims_digest=DIGEST)
        received = box.receive(mail, 1)
        assert received.channel is not None
        made = box.reply(received.channel, 0, ReplyKind.RESULT, BODY, last=True)
        assert made is not None
        spent["enclave"] += clock() - began
        began = clock()
        reply = client.decrypt(made[1])
        spent["client"] += clock() - began
        if reply.body != BODY or not isinstance(reply, Reply):
            raise RuntimeError("another reply")


class Handshake:
    """The two ends of a TLS 1.3 connection in memory, timed apart."""

    def __init__(self, place: Path) -> None:
        file, key = certificate(place)
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.minimum_version = ssl.TLSVersion.TLSv1_3
        self._server.load_cert_chain(file, key)
        self._server.num_tickets = 0
        self._client = trust(file)

    def once(self, spent: dict[str, float]) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        clock = time.process_time
        began = clock()
        client = self._client.wrap_bio(down, up, server_hostname="localhost")
        spent["client"] += clock() - began
        began = clock()
        server = self._server.wrap_bio(up, down, server_side=True)
        spent["server"] += clock() - began
        steps = (
            ("client", client.do_handshake),
            ("server", server.do_handshake),
            ("client", client.do_handshake),
            ("server", server.do_handshake),
            ("client", lambda: client.write(BODY)),
            ("server", lambda: server.read(2048)),
            ("server", lambda: server.write(BODY)),
            ("client", lambda: client.read(2048)),
        )
        for side, step in steps:
            began = clock()
            try:
                result = step()
            except ssl.SSLWantReadError:
                result = None
            spent[side] += clock() - began
        if result != BODY:
            raise RuntimeError("another reply")


def apart(work: Callable[[dict[str, float]], None], sides: tuple[str, str]) -> dict[str, float]:
    """Processor milliseconds of each side of one exchange."""
    spent = dict.fromkeys(sides, 0.0)
    for _ in range(EACH):
        work(spent)
    return {name: seconds / EACH * 1e3 for name, seconds in spent.items()}


def main() -> None:
    """Measure and report."""
    verification, opening = Verification(), Opening()
    found: dict[str, list[float]] = {name: [] for name in ("ours", "theirs", "client", "enclave", "tls_c", "tls_s")}
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as place:
        handshake = Handshake(Path(place))
        for _ in range(ROUNDS):
            found["ours"].append(cpu_ms(verification.ours))
            found["theirs"].append(cpu_ms(verification.theirs))
            mine = apart(opening.once, ("client", "enclave"))
            tls = apart(handshake.once, ("client", "server"))
            for name, value in (*mine.items(), ("tls_c", tls["client"]), ("tls_s", tls["server"])):
                found[name].append(value)

    def ratio(a: str, b: str) -> float:
        return middle(x / y for x, y in zip(found[a], found[b], strict=True))

    emit(
        "verify_instance",
        ours={"cpu_ms": middle(found["ours"])},
        theirs={"dcap_qvl": {"cpu_ms": middle(found["theirs"])}},
        ratios={"dcap_qvl": ratio("ours", "theirs")},
        rounds=ROUNDS,
    )
    emit(
        "opening",
        ours={"client_cpu_ms": middle(found["client"]), "enclave_cpu_ms": middle(found["enclave"])},
        theirs={"tls13": {"client_cpu_ms": middle(found["tls_c"]), "server_cpu_ms": middle(found["tls_s"])}},
        ratios={"tls13": {"client": ratio("client", "tls_c"), "enclave": ratio("enclave", "tls_s")}},
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
