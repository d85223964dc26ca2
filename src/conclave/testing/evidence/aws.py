"""Nitro evidence under a test PKI of AWS's shape: attestation documents.

For tests. Format: AWS Nitro Enclaves user guide, "Verifying the root of trust"; COSE
(RFC 9052) with ES384; CBOR (RFC 8949), written here so that it can also be written badly.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from conclave.testing.evidence.draft import AFTER, BEFORE, SIGNATURE, BuiltEvidence, Draft, fingerprint
from conclave.testing.evidence.pki import CertificateDraft, KeyRing

ES384: Final = -35
SIGN1: Final = 18
_INSTANCE: Final = "i-0123456789abcdef0"
_REGION: Final = "test-region-1"
_DOMAIN: Final = "aws.nitro-enclaves"
_COMMON: Final = {
    "root": f"test.{_DOMAIN}",
    "regional": f"0123456789abcdef.{_REGION}.{_DOMAIN}",
    "zonal": f"fedcba9876543210.zonal.{_REGION}.{_DOMAIN}",
    "instance": f"{_INSTANCE}.{_REGION}.{_DOMAIN}",
    "leaf": f"{_INSTANCE}-enc0123456789abcde.{_REGION}.aws",
}
_ABOVE: Final = {"root": "root", "regional": "root", "zonal": "regional", "instance": "zonal", "leaf": "instance"}
# Each lives shorter than the one above it.
_LIVES: Final = {
    "root": (timedelta(days=2500), timedelta(days=8000)),
    "regional": (timedelta(days=5), timedelta(days=15)),
    "zonal": (timedelta(days=1), timedelta(days=4)),
    "instance": (timedelta(hours=9), timedelta(hours=15)),
    "leaf": (timedelta(seconds=3), timedelta(hours=3)),
}


@dataclass(frozen=True, slots=True)
class Pairs:
    """A CBOR map as it is to be written: keys may repeat; `indefinite` has no length."""

    pairs: tuple[tuple[Any, Any], ...]
    indefinite: bool = False


@dataclass(frozen=True, slots=True)
class Raw:
    """CBOR that is written as it stands."""

    data: bytes


def head(major: int, value: int) -> bytes:
    """The head of a CBOR item in its shortest form."""
    if value < 24:
        return bytes((major << 5 | value,))
    size = 0 if value < 1 << 8 else 1 if value < 1 << 16 else 2 if value < 1 << 32 else 3
    return bytes((major << 5 | 24 + size,)) + struct.pack(">" + "BHIQ"[size], value)


def cbor(value: Any) -> bytes:
    """CBOR of integers, text, bytes, None, booleans, lists, dicts, Pairs and Raw, in the order given."""
    match value:
        case Raw():
            return value.data
        case None | bool():
            return {False: b"\xf4", True: b"\xf5", None: b"\xf6"}[value]
        case int():
            return head(0, value) if value >= 0 else head(1, -1 - value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value.encode())) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(cbor(v) for v in value)
        case dict():
            return cbor(Pairs(tuple(value.items())))
        case Pairs():
            items = b"".join(cbor(k) + cbor(v) for k, v in value.pairs)
            return b"\xbf" + items + b"\xff" if value.indefinite else head(5, len(value.pairs)) + items
    raise TypeError(f"no CBOR for {type(value).__name__}")


class AwsDraft(Draft):
    """A document before it is signed.

    Layers: the certificates `root`, `regional`, `zonal`, `instance`, `leaf`; `document`,
    of which `before_signing` gets the payload, and `after_signing` all of it.

    Attributes:
        payload: what the hypervisor says; `certificate` and `cabundle` are put in when it
            is built, unless they are there.
        indefinite: write the payload's map without its length.
        cabundle: names of certificates, root first.
        protected, unprotected: COSE headers; bytes for `protected` stand as they are.
        context, aad: what the signature covers besides headers and payload.
        detached: leave the payload out of what was signed.
        tagged: write the COSE_Sign1 tag.
        trailing: bytes after the document.
    """

    def __init__(self, pki: AwsPki) -> None:
        super().__init__(pki.ring, pki.now, pki.certificates(), {**_ABOVE, "document": "leaf"}, pki.anchors)
        self.payload: dict[Any, Any] = {
            "module_id": f"{_INSTANCE}-enc0123456789abcde",
            "digest": "SHA384",
            "timestamp": int(pki.now.timestamp()) * 1000,
            "pcrs": {i: _digest(f"pcr {i}") if i in (0, 1, 2, 4) else bytes(48) for i in range(16)},
            "certificate": None,
            "cabundle": None,
            "public_key": None,
            "user_data": None,
            "nonce": None,
        }
        self.indefinite = False
        self.cabundle = ["root", "regional", "zonal", "instance"]
        self.protected: Any = {1: ES384}
        self.unprotected: Any = {}
        self.context: Any = "Signature1"
        self.aad = b""
        self.detached = False
        self.tagged = False
        self.trailing = b""

    def build(self) -> BuiltEvidence:
        """Sign everything."""
        said = dict(self.payload)
        if "certificate" in said and said["certificate"] is None:
            said["certificate"] = self.certificate("leaf")
        if "cabundle" in said and said["cabundle"] is None:
            said["cabundle"] = [self.certificate(name) for name in self.cabundle]
        payload = self._apply(BEFORE, "document", cbor(Pairs(tuple(said.items()), self.indefinite)))
        protected = self.protected if isinstance(self.protected, bytes) else cbor(self.protected)
        to_sign = cbor([self.context, protected, self.aad, payload])
        signature = self.ring.ec(self.signers["document"]).sign_raw(to_sign)
        signature = self._apply(SIGNATURE, "document", signature)
        document = cbor([protected, self.unprotected, None if self.detached else payload, signature])
        document = (head(6, SIGN1) if self.tagged else b"") + document
        return self._finish("nitro", self._apply(AFTER, "document", document) + self.trailing, b"")


@dataclass(frozen=True, slots=True)
class AwsPki:
    """The Nitro PKI, and one instance with an enclave."""

    ring: KeyRing
    now: datetime
    anchors: frozenset[str]

    @classmethod
    def create(cls, *, now: datetime, seed: bytes = b"conclave") -> AwsPki:
        """A PKI whose keys follow from the seed.

        Args:
            now: aware time at which what it builds is valid; whole seconds count.
        """
        moment = now.astimezone(UTC).replace(microsecond=0)
        bare = cls(KeyRing(seed, "p384"), moment, frozenset())
        root = Draft(bare.ring, moment, bare.certificates(), dict(_ABOVE), ()).certificate("root")
        return cls(bare.ring, moment, frozenset({fingerprint(root)}))

    def certificates(self) -> dict[str, CertificateDraft]:
        """Drafts of the five certificates."""
        drafts = {}
        for depth, name in enumerate(_COMMON):
            before, after = _LIVES[name]
            draft = CertificateDraft(
                key=name,
                subject=_name(name),
                issuer=_name(_ABOVE[name]),
                serial=self.ring.serial(name),
                not_before=self.now - before,
                not_after=self.now + after,
            )
            if name == "leaf":
                draft.set(identifiers=False)
            else:
                usage = ("key_cert_sign",) if name == "instance" else ("digital_signature", "key_cert_sign", "crl_sign")
                draft.set(ca=True, path_length=3 - depth if depth else None, usage=usage)
            drafts[name] = draft
        return drafts

    def nitro_draft(
        self,
        *,
        public_key: bytes | None = None,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        debug: bool = False,
        pcrs: int = 16,
    ) -> AwsDraft:
        """A document that passes, to be changed.

        Args:
            public_key, user_data, nonce: as the enclave chose them.
            debug: the enclave runs in debug mode: its PCRs are zero.
            pcrs: how many there are.
        """
        draft = AwsDraft(self)
        draft.payload |= {"public_key": public_key, "user_data": user_data, "nonce": nonce}
        registers = draft.payload["pcrs"]
        registers |= {i: _digest(f"pcr {i}") for i in range(16, pcrs)}
        if debug:
            registers |= {i: bytes(48) for i in (0, 1, 2)}
        return draft

    def nitro(self, *, change: Callable[[AwsDraft], object] | None = None, **options: Any) -> BuiltEvidence:
        """A document: `nitro_draft`, changed, built."""
        draft = self.nitro_draft(**options)
        if change is not None:
            change(draft)
        return draft.build()


def _name(certificate: str) -> dict[str, str]:
    vendor = {"C": "US", "O": "Test of AWS's shape", "OU": "Test"}
    return {**vendor, "CN": _COMMON[certificate]}


def _digest(what: str) -> bytes:
    return hashlib.sha384(b"conclave test\0" + what.encode()).digest()
