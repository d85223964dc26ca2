"""SGX and TDX evidence under a test PKI of Intel's shape: quotes and their endorsements.

For tests. Layouts: Intel DCAP ECDSA Quote Library API, appendix A (quotes of versions
3, 4 and 5); Intel SDM volume 3D, table 38-21 (SGX report); TDX module ABI specification
(TD report); Intel PCS API v4 (TCB info, enclave identity).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from conclave.platform import vendor as simulated
from conclave.platform.pki import sgx_extension, sgx_values
from conclave.platform.quote import ATTRIBUTES, QE_VENDOR
from conclave.testing.evidence.draft import AFTER, BEFORE, SIGNATURE, BuiltEvidence, Draft, Layout, Record, fingerprint
from conclave.testing.evidence.pki import CertificateDraft, KeyRing, ListDraft, pem

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"

HEADER_3: Final[Layout] = (
    ("version", 0, 2),
    ("attestation_key_type", 2, 2),
    ("reserved", 4, 4),
    ("qe_svn", 8, 2),
    ("pce_svn", 10, 2),
    ("qe_vendor_id", 12, 16),
    ("user_data", 28, 20),
)
HEADER_4: Final[Layout] = (
    ("version", 0, 2),
    ("attestation_key_type", 2, 2),
    ("tee_type", 4, 4),
    ("reserved", 8, 4),
    ("qe_vendor_id", 12, 16),
    ("user_data", 28, 20),
)
SGX_REPORT: Final[Layout] = (
    ("cpu_svn", 0, 16),
    ("misc_select", 16, 4),
    ("reserved1", 20, 12),
    ("isv_ext_prod_id", 32, 16),
    ("attributes", 48, 16),
    ("mrenclave", 64, 32),
    ("reserved2", 96, 32),
    ("mrsigner", 128, 32),
    ("reserved3", 160, 32),
    ("config_id", 192, 64),
    ("isv_prod_id", 256, 2),
    ("isv_svn", 258, 2),
    ("config_svn", 260, 2),
    ("reserved4", 262, 42),
    ("isv_family_id", 304, 16),
    ("report_data", 320, 64),
)
TD_REPORT_10: Final[Layout] = (
    ("tee_tcb_svn", 0, 16),
    ("mrseam", 16, 48),
    ("mrsignerseam", 64, 48),
    ("seam_attributes", 112, 8),
    ("td_attributes", 120, 8),
    ("xfam", 128, 8),
    ("mrtd", 136, 48),
    ("mrconfigid", 184, 48),
    ("mrowner", 232, 48),
    ("mrownerconfig", 280, 48),
    ("rtmr0", 328, 48),
    ("rtmr1", 376, 48),
    ("rtmr2", 424, 48),
    ("rtmr3", 472, 48),
    ("report_data", 520, 64),
)
TD_REPORT_15: Final[Layout] = (*TD_REPORT_10, ("tee_tcb_svn2", 584, 16), ("mrservicetd", 600, 48))

_INTEL: Final = {"O": "Test of Intel's shape", "C": "US"}
_COMMON: Final = {
    "root": "Test SGX Root CA",
    "pck_ca": "Test SGX PCK Platform CA",
    "pck": "Test SGX PCK Certificate",
    "tcb_signer": "Test SGX TCB Signing",
}
_SIGNERS: Final = {
    "root": "root",
    "pck_ca": "root",
    "pck": "pck_ca",
    "tcb_signer": "root",
    "root_crl": "root",
    "pck_crl": "pck_ca",
    "tcb_info": "tcb_signer",
    "qe_identity": "tcb_signer",
    "qe_report": "pck",
    "quote": "attestation",
}
_DAY: Final = timedelta(days=1)
_YEAR: Final = timedelta(days=365)
TDX_MRSIGNER_QE: Final = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
TEE_TDX: Final = 0x81
TEE_TCB_SVN: Final = bytes((5, 1, 6)) + bytes(13)
# SEPT_VE_DISABLE.
TD_ATTRIBUTES: Final = 1 << 28


class IntelDraft(Draft):
    """A quote and its endorsements before they are signed.

    Layers: the certificates `pck`, `pck_ca`, `root`, `tcb_signer`; the lists `pck_crl`
    and `root_crl`; `tcb_info` and `qe_identity` (their text); `qe_report`; `quote`.
    Unsigned, with `after_signing` only: `chain` (the PEM in the quote) and `endorsements`.

    Attributes:
        tee: `sgx` or `tdx`.
        header, body, qe_report: by the field names of the layouts in this module.
        body_type: of quotes of version 5: 1 SGX, 2 TD report 1.0, 3 TD report 1.5.
        qe_auth: the quoting enclave's authentication data.
        point: the attestation key's public half as the quote has it.
        binding: report data of the quoting enclave; None: the digest that binds the key.
        sgx: values of the SGX extension of the PCK certificate in DER, by the end of
            their OIDs; empty leaves the extension to `certificates`.
        pck_crl, root_crl: the revocation lists; None leaves one out.
        tcb_info, qe_identity: signed as compact JSON.
        chains: names of certificates in `quote`, `pck_crl`, `tcb_info`, `qe_identity`.
        certification: type of the certification data: 5 is the chain. For others what
            `certification_data` says, and the chain goes to the endorsements.
        outer_certification: type of what holds it in quotes from version 4 on.
        sizes: what is added to a declared size: `signature_data`, `qe_auth`, `chain`,
            `certification`, `body`.
        endorsements: members that replace the built ones; None takes one away.
        trailing: bytes after the quote.
    """

    def __init__(self, pki: IntelPki, tee: str, version: int, body_type: int) -> None:
        super().__init__(pki.ring, pki.now, pki.certificates(), dict(_SIGNERS), pki.anchors)
        self.tee = tee
        self._version = version
        self.body_type = body_type
        self.header = Record(HEADER_3 if version == 3 else HEADER_4)
        self.header.set(version=version, attestation_key_type=2, qe_vendor_id=QE_VENDOR)
        self.body = Record(SGX_REPORT if body_type == 1 else TD_REPORT_10 if body_type == 2 else TD_REPORT_15)
        self.qe_report = Record(SGX_REPORT).set(
            cpu_svn=bytes((simulated.CPU_SVN,)) * 16,
            attributes=simulated.QE_ATTRIBUTES,
            mrenclave=_digest("quoting enclave")[:32],
            mrsigner=simulated.QE_MRSIGNER,
            isv_prod_id=simulated.QE_PRODUCT,
            isv_svn=simulated.QE_SVN,
        )
        self.qe_auth = bytes(range(32))
        self.point = pki.ring.ec("attestation").point
        self.binding: bytes | None = None
        self.sgx = sgx_values(ppid=pki.ppid, fmspc=pki.fmspc)
        # Members of certificates for platforms with several processors.
        self.sgx |= {"5": b"\x0a\1\1", "6": b"\4\x10" + _digest("platform instance")[:16]}
        self.sgx |= {f"7.{i}": b"\1\1" + (b"\xff" if i == 1 else b"\0") for i in (1, 2, 3)}
        day = pki.now - _DAY
        self.pck_crl: ListDraft | None = ListDraft(_name("pck_ca"), day, pki.now + 29 * _DAY)
        self.root_crl: ListDraft | None = ListDraft(_name("root"), day, pki.now + 300 * _DAY)
        vendor = simulated.Vendor.first(day, number=17)
        self.tcb_info: dict[str, Any] = vendor.tcb_info(pki.fmspc, now=day)
        self.qe_identity: dict[str, Any] = vendor.qe_identity(now=day)
        self.chains = {
            "quote": ["pck", "pck_ca", "root"],
            "pck_crl": ["pck_ca", "root"],
            "tcb_info": ["tcb_signer", "root"],
            "qe_identity": ["tcb_signer", "root"],
        }
        self.certification = 5
        self.certification_data = b""
        self.outer_certification = 6
        self.sizes: dict[str, int] = {}
        self.endorsements: dict[str, Any] = {}
        self.trailing = b""

    @property
    def level(self) -> dict[str, Any]:
        """The first TCB level of the TCB info, the one that the platform has."""
        level: dict[str, Any] = self.tcb_info["tcbLevels"][0]
        return level

    @property
    def qe_level(self) -> dict[str, Any]:
        """The first level of the quoting enclave's identity."""
        level: dict[str, Any] = self.qe_identity["tcbLevels"][0]
        return level

    @property
    def bound(self) -> bytes:
        """Report data with which a quoting enclave certifies the attestation key."""
        return hashlib.sha256(self.point + self.qe_auth).digest() + bytes(32)

    def tcb_info_2(self) -> Self:
        """Rewrite the TCB info in its version 2, which has no id and names each component."""
        info = self.tcb_info
        info.pop("id", None)
        info["version"] = 2
        for level in info["tcbLevels"]:
            components = level["tcb"].pop("sgxtcbcomponents")
            named = {f"sgxtcbcomp{i:02}svn": c["svn"] for i, c in enumerate(components, 1)}
            level["tcb"] = named | level["tcb"]
            level.pop("advisoryIDs", None)
        return self

    def build(self) -> BuiltEvidence:
        """Sign everything, innermost first."""
        if self.sgx:
            extension = sgx_extension(self.sgx.items())
            self.certificates["pck"].extensions[SGX_EXTENSION] = (False, extension)
        raw = self._quote()
        return self._finish(self.tee, raw, self._apply(AFTER, "endorsements", self._endorsements()))

    def _quote(self) -> bytes:
        body = self.body.pack()
        if self._version >= 5:
            body = struct.pack("<HI", self.body_type, len(body) + self.sizes.get("body", 0)) + body
        to_sign = self._apply(BEFORE, "quote", self.header.pack() + body)
        signature = self._apply(SIGNATURE, "quote", self._raw_signature("quote", to_sign))
        certification = self._certification()
        if self._version >= 4:
            certification = self._block("certification", self.outer_certification, certification)
        data = signature + self.point + certification
        size = len(data) + self.sizes.get("signature_data", 0)
        return self._apply(AFTER, "quote", to_sign + struct.pack("<I", size) + data) + self.trailing

    def _certification(self) -> bytes:
        self.qe_report["report_data"] = self.bound if self.binding is None else self.binding
        report = self._apply(BEFORE, "qe_report", self.qe_report.pack())
        signature = self._apply(SIGNATURE, "qe_report", self._raw_signature("qe_report", report))
        if self.certification == 5:
            self.certification_data = self._apply(AFTER, "chain", self._pem("quote").encode())
        return (
            self._apply(AFTER, "qe_report", report + signature)
            + struct.pack("<H", len(self.qe_auth) + self.sizes.get("qe_auth", 0))
            + self.qe_auth
            + self._block("chain", self.certification, self.certification_data)
        )

    def _block(self, name: str, kind: int, data: bytes) -> bytes:
        return struct.pack("<HI", kind, len(data) + self.sizes.get(name, 0)) + data

    def _endorsements(self) -> bytes:
        members: dict[str, Any] = {"pck_crl_issuer_chain": self._pem("pck_crl")}
        members["root_ca_crl"] = self._list("root_crl", self.root_crl).hex() if self.root_crl else ""
        members["pck_crl"] = self._list("pck_crl", self.pck_crl).hex() if self.pck_crl else ""
        for name in ("tcb_info", "qe_identity"):
            text = json.dumps(getattr(self, name), separators=(",", ":")).encode()
            text = self._apply(BEFORE, name, text)
            signature = self._apply(SIGNATURE, name, self._raw_signature(name, text))
            members[f"{name}_issuer_chain"] = self._pem(name)
            members[name] = self._apply(AFTER, name, text).decode()
            members[f"{name}_signature"] = signature.hex()
        if self.certification != 5:
            members["pck_certificate_chain"] = self._pem("quote")
        members |= self.endorsements
        return json.dumps({k: v for k, v in members.items() if v is not None}, separators=(",", ":")).encode()

    def _pem(self, name: str) -> str:
        return pem(*(self.certificate(c) for c in self.chains[name]))

    def _raw_signature(self, layer: str, data: bytes) -> bytes:
        return self.ring.ec(self.signers[layer]).sign_raw(data)


@dataclass(frozen=True, slots=True)
class IntelPki:
    """A processor with its quoting enclave, and a vendor to vouch for it."""

    ring: KeyRing
    now: datetime
    fmspc: bytes
    ppid: bytes
    anchors: frozenset[str]

    @classmethod
    def create(cls, *, now: datetime, seed: bytes = b"conclave") -> IntelPki:
        """A PKI whose keys follow from the seed.

        Args:
            now: aware time at which what it builds is valid; whole seconds count.
        """
        moment = now.astimezone(UTC).replace(microsecond=0)
        ring = KeyRing(seed, "p256")
        drawn = hashlib.sha256(b"platform\0" + seed).digest()
        bare = cls(ring, moment, bytes((0,)) + drawn[:2] + bytes(3), drawn[16:], frozenset())
        root = Draft(ring, moment, bare.certificates(), dict(_SIGNERS), ()).certificate("root")
        return cls(ring, moment, bare.fmspc, bare.ppid, frozenset({fingerprint(root)}))

    def certificates(self) -> dict[str, CertificateDraft]:
        """Drafts of root, PCK CA, PCK and TCB signer."""
        drafts = {}
        years = {"root": (7, 24), "pck_ca": (7, 8), "pck": (1, 6), "tcb_signer": (1, 6)}
        for name, (before, after) in years.items():
            issuer = _SIGNERS[name]
            draft = CertificateDraft(
                key=name,
                subject=_name(name),
                issuer=_name(issuer),
                serial=self.ring.serial(name),
                not_before=self.now - before * _YEAR,
                not_after=self.now + after * _YEAR,
            )
            if name in ("root", "pck_ca"):
                draft.set(ca=True, path_length=int(name == "root"), usage=("key_cert_sign", "crl_sign"))
            drafts[name] = draft
        return drafts

    def sgx_draft(
        self, *, version: int = 3, report_data: bytes = bytes(64), debug: bool = False, tcb_info: int = 3
    ) -> IntelDraft:
        """An SGX quote that passes, to be changed.

        Args:
            version: of the quote: 3, 4 or 5.
            report_data: 64 bytes, as the enclave chose them.
            debug: the enclave can be debugged.
            tcb_info: version of the TCB info: 2 or 3.

        Raises:
            ValueError: there is no such quote.
        """
        if version not in (3, 4, 5) or tcb_info not in (2, 3):
            raise ValueError("an SGX quote has version 3, 4 or 5, TCB info version 2 or 3")
        draft = IntelDraft(self, "sgx", version, 1)
        if version == 3:
            draft.header.set(qe_svn=simulated.QE_SVN, pce_svn=simulated.PCE_SVN)
        attributes = int.from_bytes(ATTRIBUTES, "little") | (2 if debug else 0)
        draft.body.set(
            cpu_svn=bytes((simulated.CPU_SVN,)) * 16,
            attributes=attributes,
            mrenclave=_digest("enclave")[:32],
            mrsigner=_digest("signer")[:32],
            isv_prod_id=7,
            isv_svn=3,
            report_data=report_data,
        )
        return draft.tcb_info_2() if tcb_info == 2 else draft

    def tdx_draft(
        self, *, version: int = 4, body: int = 2, report_data: bytes = bytes(64), debug: bool = False, module: int = 1
    ) -> IntelDraft:
        """A TDX quote that passes, to be changed.

        Args:
            version: of the quote: 4 or 5.
            body: 2 for a TD report 1.0; 3 for a TD report 1.5, in version 5 only.
            report_data: 64 bytes, as the TD chose them.
            debug: the TD can be debugged.
            module: major version of the TDX module; for 0 the TCB info has no identity.

        Raises:
            ValueError: there is no such quote.
        """
        if (version, body) not in ((4, 2), (5, 2), (5, 3)):
            raise ValueError("a TDX quote has version 4, or 5 with a body of type 2 or 3")
        draft = IntelDraft(self, "tdx", version, body)
        draft.header["tee_type"] = TEE_TDX
        svn = bytes((5, module, 6)) + bytes(13)
        draft.body.set(
            tee_tcb_svn=svn,
            mrseam=_digest("module"),
            td_attributes=TD_ATTRIBUTES | (1 if debug else 0),
            xfam=0xE7,
            mrtd=_digest("firmware"),
            **{f"rtmr{i}": _digest(f"register {i}") for i in range(3)},
            report_data=report_data,
        )
        if body == 3:
            draft.body["tee_tcb_svn2"] = svn
        draft.qe_report.set(mrsigner=TDX_MRSIGNER_QE, isv_prod_id=2)
        draft.qe_identity.update(id="TD_QE", mrsigner=TDX_MRSIGNER_QE.hex().upper(), isvprodid=2)
        level = draft.level
        level["tcb"]["tdxtcbcomponents"] = [{"svn": s} for s in (5, 0, 6, *(0,) * 13)]
        issued = level["tcbDate"]
        signer = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        draft.tcb_info = {
            **{k: v for k, v in draft.tcb_info.items() if k != "tcbLevels"},
            "id": "TDX",
            "tdxModule": dict(signer),
            "tdxModuleIdentities": [
                {
                    "id": f"TDX_{major:02}",
                    **signer,
                    "tcbLevels": [
                        {"tcb": {"isvsvn": 5}, "tcbDate": issued, "tcbStatus": "UpToDate"},
                        {
                            "tcb": {"isvsvn": 3},
                            "tcbDate": issued,
                            "tcbStatus": "OutOfDate",
                            "advisoryIDs": ["TEST-SA-00002"],
                        },
                    ],
                }
                for major in (1, 3)
            ],
            "tcbLevels": draft.tcb_info["tcbLevels"],
        }
        return draft

    def sgx(self, *, change: Callable[[IntelDraft], object] | None = None, **options: Any) -> BuiltEvidence:
        """An SGX quote and its endorsements: `sgx_draft`, changed, built."""
        return _changed(self.sgx_draft(**options), change)

    def tdx(self, *, change: Callable[[IntelDraft], object] | None = None, **options: Any) -> BuiltEvidence:
        """A TDX quote and its endorsements: `tdx_draft`, changed, built."""
        return _changed(self.tdx_draft(**options), change)


def _changed(draft: IntelDraft, change: Callable[[IntelDraft], object] | None) -> BuiltEvidence:
    if change is not None:
        change(draft)
    return draft.build()


def _name(certificate: str) -> dict[str, str]:
    return {"CN": _COMMON[certificate], **_INTEL}


def _digest(what: str) -> bytes:
    return hashlib.sha384(b"conclave test\0" + what.encode()).digest()
