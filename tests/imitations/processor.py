"""Processors for the imitations: they sign real-format evidence under a test anchor.

Each is made from a time alone, so that two processes can have the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

from conclave.testing.evidence import AmdPki, AwsPki, BuiltEvidence, IntelPki

EMPTY = bytes(48)


# Making a PKI takes longer than anything that is done with it.
@cache
def _intel(now: datetime) -> IntelPki:
    return IntelPki.create(now=now)


@cache
def _amd(now: datetime) -> AmdPki:
    return AmdPki.create(now=now)


@cache
def _aws(now: datetime) -> AwsPki:
    return AwsPki.create(now=now)


def extend(register: bytes, data: bytes) -> bytes:
    return hashlib.sha384(register + data).digest()


@dataclass
class Sgx:
    """Gramine's enclave: runtime and bundle are one measurement."""

    now: datetime
    bundle_id: bytes = b""
    kind = "sgx"

    def launch(self, bundle_id: bytes) -> None:
        self.bundle_id = bundle_id

    @property
    def _pki(self) -> IntelPki:
        return _intel(self.now)

    @property
    def mrenclave(self) -> bytes:
        return hashlib.sha256(b"the runtime with " + self.bundle_id).digest()

    def evidence(self, report_data: bytes) -> BuiltEvidence:
        def change(draft: Any) -> None:
            draft.body.set(mrenclave=self.mrenclave)

        return self._pki.sgx(report_data=report_data, change=change)

    def sealing_key(self, name: str) -> bytes:
        measured = self.mrenclave if name == "_sgx_mrenclave" else b"signer"
        return hashlib.sha256(b"this processor" + measured).digest()[:16]


@dataclass
class Tdx:
    now: datetime
    mrconfigid: bytes = EMPTY
    rtmr3: bytes = EMPTY
    version: int = 4
    body: int = 2
    by_register: bool = False
    kind = "tdx"

    def launch(self, bundle_id: bytes) -> None:
        self.rtmr3 = EMPTY
        self.mrconfigid = EMPTY if self.by_register else bundle_id + bytes(16)

    @property
    def _pki(self) -> IntelPki:
        return _intel(self.now)

    def evidence(self, report_data: bytes) -> BuiltEvidence:
        def change(draft: Any) -> None:
            draft.body.set(mrconfigid=self.mrconfigid, rtmr3=self.rtmr3)

        return self._pki.tdx(version=self.version, body=self.body, report_data=report_data, change=change)


@dataclass
class Snp:
    now: datetime
    host_data: bytes = bytes(32)
    vmpl: int = 0
    leaf: str = "vcek"
    kind = "snp"

    def launch(self, bundle_id: bytes) -> None:
        self.host_data = bundle_id

    @property
    def _pki(self) -> AmdPki:
        return _amd(self.now)

    def evidence(self, report_data: bytes) -> BuiltEvidence:
        def change(draft: Any) -> None:
            draft.report.set(host_data=self.host_data, vmpl=self.vmpl)

        return self._pki.snp(leaf=self.leaf, report_data=report_data, change=change)


@dataclass
class Nitro:
    now: datetime
    user_data: bytes | None = None
    pcrs: dict[int, bytes] = field(default_factory=dict)
    nonce: bytes | None = None
    public_key: bytes | None = None
    indefinite: bool = True
    change: Callable[[Any], None] = lambda draft: None
    kind = "nitro"

    @property
    def _pki(self) -> AwsPki:
        return _aws(self.now)

    def evidence(self, report_data: bytes | None) -> BuiltEvidence:
        def change(draft: Any) -> None:
            draft.payload["pcrs"] |= self.pcrs
            draft.indefinite = self.indefinite
            self.change(draft)

        given = {"nonce": self.nonce, "public_key": self.public_key}
        return self._pki.nitro(user_data=report_data, change=change, **given)
