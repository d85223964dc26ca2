"""Evidence before it is signed: fields that can be set, and hooks at every layer.

For tests. A draft passes as it comes. What is set before `build` is signed like
everything else; a hook changes the bytes that are signed, the signature, or what
was signed, without anything being signed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from conclave.testing.evidence.pki import CertificateDraft, KeyRing, ListDraft, SigningKey, signed

Change = Callable[[bytes], bytes]
Layout = tuple[tuple[str, int, int], ...]

BEFORE: Final = "before"
SIGNATURE: Final = "signature"
AFTER: Final = "after"


@dataclass(frozen=True, slots=True)
class BuiltEvidence:
    """What a host would hand out, and what a verifier has to know to judge it.

    Attributes:
        tee: `sgx`, `tdx`, `snp` or `nitro`.
        raw: the quote, report or document.
        endorsements: JSON as verifiers take it; empty for Nitro.
        anchors: SHA-256 of the root certificate to trust, in hex.
        now: a time at which all of it is valid, if nothing was changed.
    """

    tee: str
    raw: bytes
    endorsements: bytes
    anchors: frozenset[str]
    now: datetime


class Record:
    """A structure of fixed size: `record["version"] = 7`, `record.set(version=7)`.

    Integers are written little-endian.
    """

    def __init__(self, layout: Layout) -> None:
        self._places = {name: (offset, size) for name, offset, size in layout}
        self._data = bytearray(sum(size for _, _, size in layout))

    def __getitem__(self, name: str) -> bytes:
        offset, size = self._places[name]
        return bytes(self._data[offset : offset + size])

    def __setitem__(self, name: str, value: int | bytes) -> None:
        offset, size = self._places[name]
        data = value.to_bytes(size, "little") if isinstance(value, int) else value
        if len(data) != size:
            raise ValueError(f"{name} has {size} bytes")
        self._data[offset : offset + size] = data

    def set(self, **values: int | bytes) -> Self:
        """Set fields by name. Raises KeyError for one that there is not."""
        for name, value in values.items():
            self[name] = value
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of its fields, in their order."""
        return tuple(self._places)

    def pack(self) -> bytes:
        """All of it."""
        return bytes(self._data)


class Draft:
    """What drafts of all vendors share.

    A layer is what one signature covers: each certificate and list by its name, and
    the vendor's own, listed with each draft.

    Attributes:
        certificates: by name; add others and put them into a chain.
        signers: which key signs a layer, by the key's name.
        ring: all keys.
        pinned: the certificate whose fingerprint becomes the anchor, if it is not the
            unchanged root of the PKI.
    """

    def __init__(
        self,
        ring: KeyRing,
        now: datetime,
        certificates: dict[str, CertificateDraft],
        signers: dict[str, str],
        anchors: Iterable[str],
    ) -> None:
        self.certificates = certificates
        self.signers = signers
        self.pinned: str | None = None
        self.now = now
        self.ring = ring
        self._anchors = frozenset(anchors)
        self._hooks: dict[tuple[str, str], list[Change]] = {}
        self._built: dict[str, bytes] = {}

    def before_signing(self, layer: str, change: Change) -> Self:
        """Change the bytes of a layer that are about to be signed."""
        return self._hook(BEFORE, layer, change)

    def at_signature(self, layer: str, change: Change) -> Self:
        """Change a layer's signature."""
        return self._hook(SIGNATURE, layer, change)

    def after_signing(self, layer: str, change: Change) -> Self:
        """Change a layer together with its signature."""
        return self._hook(AFTER, layer, change)

    def _hook(self, when: str, layer: str, change: Change) -> Self:
        self._hooks.setdefault((when, layer), []).append(change)
        return self

    def _apply(self, when: str, layer: str, data: bytes) -> bytes:
        for change in self._hooks.pop((when, layer), ()):
            data = change(data)
        return data

    def _signer(self, layer: str) -> SigningKey:
        return self.ring[self.signers[layer]]

    def certificate(self, name: str) -> bytes:
        """A certificate as it will be in the evidence, in DER. Change nothing of it afterwards."""
        if name not in self._built:
            signer = self._signer(name)
            to_sign = self._apply(BEFORE, name, self.certificates[name].to_sign(self.ring, signer))
            signature = self._apply(SIGNATURE, name, signer.sign(to_sign))
            self._built[name] = self._apply(AFTER, name, signed(to_sign, signer.algorithm, signature))
        return self._built[name]

    def _list(self, name: str, draft: ListDraft) -> bytes:
        signer = self._signer(name)
        to_sign = self._apply(BEFORE, name, draft.to_sign(signer))
        signature = self._apply(SIGNATURE, name, signer.sign(to_sign))
        return self._apply(AFTER, name, signed(to_sign, signer.algorithm, signature))

    def _finish(self, tee: str, raw: bytes, endorsements: bytes) -> BuiltEvidence:
        if self._hooks:
            unused = ", ".join(sorted(layer for _, layer in self._hooks))
            raise ValueError(f"hooks for what is not in this evidence: {unused}")
        anchors = self._anchors
        if self.pinned is not None:
            anchors = frozenset({fingerprint(self.certificate(self.pinned))})
        return BuiltEvidence(tee, raw, endorsements, anchors, self.now)


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of a certificate, in hex."""
    return hashlib.sha256(certificate).hexdigest()


def flip(data: bytes, at: int = -1, bit: int = 0) -> bytes:
    """The same bytes with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)
