"""SEV-SNP evidence under a test PKI of AMD's shape: reports, certificates, revocation lists.

For tests. Layouts: AMD 56860, SEV Secure Nested Paging Firmware ABI (attestation report,
TCB version); AMD 57230, VCEK Certificate and KDS Interface (certificates and their extensions).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from conclave.platform.pki import der
from conclave.testing.evidence.draft import AFTER, BEFORE, SIGNATURE, BuiltEvidence, Draft, Layout, Record, fingerprint
from conclave.testing.evidence.pki import RSA_KEYS, CertificateDraft, KeyRing, ListDraft, integer, pem

AMD_EXTENSION: Final = "1.3.6.1.4.1.3704.1."
"""What the OIDs of AMD's certificate extensions begin with."""

REPORT: Final[Layout] = (
    ("version", 0x000, 4),
    ("guest_svn", 0x004, 4),
    ("policy", 0x008, 8),
    ("family_id", 0x010, 16),
    ("image_id", 0x020, 16),
    ("vmpl", 0x030, 4),
    ("signature_algorithm", 0x034, 4),
    ("current_tcb", 0x038, 8),
    ("platform_info", 0x040, 8),
    ("flags", 0x048, 4),
    ("reserved1", 0x04C, 4),
    ("report_data", 0x050, 64),
    ("measurement", 0x090, 48),
    ("host_data", 0x0C0, 32),
    ("id_key_digest", 0x0E0, 48),
    ("author_key_digest", 0x110, 48),
    ("report_id", 0x140, 32),
    ("report_id_ma", 0x160, 32),
    ("reported_tcb", 0x180, 8),
    ("cpuid_family", 0x188, 1),
    ("cpuid_model", 0x189, 1),
    ("cpuid_stepping", 0x18A, 1),
    ("reserved2", 0x18B, 21),
    ("chip_id", 0x1A0, 64),
    ("committed_tcb", 0x1E0, 8),
    ("current_build", 0x1E8, 1),
    ("current_minor", 0x1E9, 1),
    ("current_major", 0x1EA, 1),
    ("reserved3", 0x1EB, 1),
    ("committed_build", 0x1EC, 1),
    ("committed_minor", 0x1ED, 1),
    ("committed_major", 0x1EE, 1),
    ("reserved4", 0x1EF, 1),
    ("launch_tcb", 0x1F0, 8),
    ("launch_mit_vector", 0x1F8, 8),
    ("current_mit_vector", 0x200, 8),
    ("reserved5", 0x208, 152),
)

# CPUID family, model and stepping; the steppings' names in certificates.
_PRODUCTS: Final = {
    "Milan": (0x19, 0x01, 0x01, "Milan-B0"),
    "Genoa": (0x19, 0x11, 0x01, "Genoa-B1"),
    "Turin": (0x1A, 0x02, 0x01, "Turin"),
}
# Components of a TCB version by their byte; the rest is reserved.
_TCB: Final = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TCB_TURIN: Final = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
# The end of each component's OID in the certificates.
_COMPONENTS: Final = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_RESERVED: Final = ("3.4", "3.5", "3.6", "3.7")
LEVELS: Final = {"fmc": 1, "bootloader": 4, "tee": 2, "snp": 24, "microcode": 219}
# SMT allowed and the bit that must be one; ABI 0.31.
POLICY: Final = 0x3001F
_ISSUER: Final = {"vcek": "ask", "vlek": "asvk"}
_VENDOR: Final = {"OU": "Test", "C": "US", "O": "Test of AMD's shape"}
_DAY: Final = timedelta(days=1)
_YEAR: Final = timedelta(days=365)


def tcb_version(product: str, levels: Mapping[str, int] = LEVELS) -> bytes:
    """Eight bytes as reports have them: each component at its place in this product."""
    out = bytearray(8)
    for name, at in (_TCB_TURIN if product == "Turin" else _TCB).items():
        out[at] = levels[name]
    return bytes(out)


class AmdDraft(Draft):
    """A report and its endorsements before they are signed.

    Layers: the certificates by name: `vcek`, `ask`, `ark`, or `vlek`, `asvk`, `ark`; the
    list `crl`; `report`. Unsigned, with `after_signing` only: `endorsements`.

    Attributes:
        leaf, issuer: names of the certificate that vouches for the report's key, and of
            the one above it.
        report: by the field names of the layout in this module.
        values: of the leaf's extensions by the end of their OIDs; DER, and the bare chip id.
        crl: the root's revocation list; None leaves it out.
        chain: names of certificates in the endorsements.
        endorsements: members that replace the built ones; None takes one away.
        trailing: bytes after the report.
    """

    def __init__(self, pki: AmdPki, product: str, leaf: str) -> None:
        self.leaf, self.issuer = leaf, _ISSUER[leaf]
        signers = {leaf: self.issuer, self.issuer: "ark", "ark": "ark", "crl": "ark", "report": leaf}
        super().__init__(pki.ring, pki.now, pki.certificates(product, leaf), signers, pki.anchors[product])
        turin = product == "Turin"
        self.chip_id = hashlib.sha512(b"chip\0" + pki.ring.seed).digest()[: 8 if turin else 64]
        family, model, stepping, name = _PRODUCTS[product]
        self.report = Record(REPORT).set(
            policy=POLICY,
            vmpl=0,
            signature_algorithm=1,
            platform_info=0x25,
            flags=4 if leaf == "vlek" else 0,
            measurement=_digest("firmware"),
            host_data=bytes(32),
            report_id=_digest("report id")[:32],
            report_id_ma=b"\xff" * 32,
            cpuid_family=family,
            cpuid_model=model,
            cpuid_stepping=stepping,
            chip_id=bytes(64) if leaf == "vlek" else self.chip_id.ljust(64, b"\0"),
            current_build=5,
            current_minor=55,
            current_major=1,
            committed_build=5,
            committed_minor=55,
            committed_major=1,
        )
        tcb = tcb_version(product)
        self.report.set(current_tcb=tcb, reported_tcb=tcb, committed_tcb=tcb, launch_tcb=tcb)
        components = _TCB_TURIN if turin else _TCB
        self.values = {"1": integer(int(turin)), "2": der(0x16, (product if leaf == "vlek" else name).encode())}
        self.values |= {_COMPONENTS[c]: integer(LEVELS[c]) for c in components}
        self.values |= {end: integer(0) for end in _RESERVED[turin:]}
        if leaf == "vlek":
            self.values["5"] = der(0x16, b"CN=cc-test.example.com")
        else:
            self.values["4"] = self.chip_id
        self.crl: ListDraft | None = ListDraft(_name(f"ARK-{product}"), pki.now - _DAY, pki.now + _YEAR)
        self.chain = [self.issuer, "ark"]
        self.endorsements: dict[str, Any] = {}
        self.trailing = b""

    def build(self) -> BuiltEvidence:
        """Sign everything."""
        leaf = self.certificates[self.leaf]
        leaf.extensions |= {AMD_EXTENSION + end: (False, value) for end, value in self.values.items()}
        report = self._apply(BEFORE, "report", self.report.pack())
        raw = self.ring.ec(self.signers["report"]).sign_raw(report)
        half = len(raw) // 2
        signature = raw[:half][::-1].ljust(72, b"\0") + raw[half:][::-1].ljust(72, b"\0") + bytes(368)
        signature = self._apply(SIGNATURE, "report", signature)
        evidence = self._apply(AFTER, "report", report + signature) + self.trailing
        members: dict[str, Any] = {
            "certificate": self.certificate(self.leaf).hex(),
            "chain": pem(*(self.certificate(name) for name in self.chain)),
            "crl": self._list("crl", self.crl).hex() if self.crl else "",
        }
        members |= self.endorsements
        text = json.dumps({k: v for k, v in members.items() if v is not None}, separators=(",", ":")).encode()
        return self._finish("snp", evidence, self._apply(AFTER, "endorsements", text))


@dataclass(frozen=True, slots=True)
class AmdPki:
    """A vendor with its products, and one processor of each.

    The RSA keys are the same in every PKI and for every product, since they take long to
    make; the names in the certificates differ.
    """

    ring: KeyRing
    now: datetime
    anchors: Mapping[str, frozenset[str]]

    @classmethod
    def create(cls, *, now: datetime, seed: bytes = b"conclave") -> AmdPki:
        """A PKI whose processors' keys follow from the seed.

        Args:
            now: aware time at which what it builds is valid; whole seconds count.
        """
        moment = now.astimezone(UTC).replace(microsecond=0)
        bare = cls(KeyRing(seed, "p384", RSA_KEYS), moment, {})
        anchors = {}
        for product in _PRODUCTS:
            draft = Draft(bare.ring, moment, bare.certificates(product, "vcek"), {"ark": "ark"}, ())
            anchors[product] = frozenset({fingerprint(draft.certificate("ark"))})
        return cls(bare.ring, moment, anchors)

    def certificates(self, product: str, leaf: str) -> dict[str, CertificateDraft]:
        """Drafts of a leaf and what is above it."""
        issuer = _ISSUER[leaf]
        middle = f"SEV-VLEK-{product}" if leaf == "vlek" else f"SEV-{product}"
        base = 0x10000 * (1 + list(_PRODUCTS).index(product))

        def draft(key: str, subject: str, above: str, serial: int, years: int) -> CertificateDraft:
            return CertificateDraft(
                key=key,
                subject=_name(subject),
                issuer=_name(above),
                serial=serial,
                not_before=self.now - 3 * _YEAR if serial else self.now - 30 * _DAY,
                not_after=self.now + years * _YEAR,
            )

        root = draft("ark", f"ARK-{product}", f"ARK-{product}", base, 22)
        root.set(ca=True, usage=("key_cert_sign", "crl_sign"))
        intermediate = draft(issuer, middle, f"ARK-{product}", base + (0x101 if leaf == "vlek" else 1), 22)
        intermediate.set(ca=True, path_length=0, usage=("key_cert_sign",))
        # The vendor gives endorsement keys serial number 0 and no standard extension.
        end = draft(leaf, f"SEV-{leaf.upper()}", middle, 0, 1 if leaf == "vlek" else 7)
        end.set(ca=None, usage=None, identifiers=False)
        return {leaf: end, issuer: intermediate, "ark": root}

    def snp_draft(
        self,
        *,
        product: str = "Milan",
        version: int = 3,
        leaf: str = "vcek",
        report_data: bytes = bytes(64),
        debug: bool = False,
    ) -> AmdDraft:
        """A report that passes, to be changed.

        Args:
            product: `Milan`, `Genoa` or `Turin`.
            version: of the report: 2, 3 or 5.
            leaf: `vcek`, the processor's own key, or `vlek`, a cloud's.
            report_data: 64 bytes, as the guest chose them.
            debug: the guest can be debugged.

        Raises:
            ValueError: there is no such report.
        """
        if product not in _PRODUCTS or version not in (2, 3, 5) or leaf not in _ISSUER:
            raise ValueError("a report is of Milan, Genoa or Turin, has version 2, 3 or 5, and a vcek or vlek")
        draft = AmdDraft(self, product, leaf)
        draft.report.set(version=version, report_data=report_data, policy=POLICY | (debug << 19))
        if version < 3:
            draft.report.set(cpuid_family=0, cpuid_model=0, cpuid_stepping=0)
        if version >= 5:
            draft.report.set(launch_mit_vector=1, current_mit_vector=1)
        return draft

    def snp(self, *, change: Callable[[AmdDraft], object] | None = None, **options: Any) -> BuiltEvidence:
        """A report and its endorsements: `snp_draft`, changed, built."""
        draft = self.snp_draft(**options)
        if change is not None:
            change(draft)
        return draft.build()


def _name(common: str) -> dict[str, str]:
    return {**_VENDOR, "CN": common}


def _digest(what: str) -> bytes:
    return hashlib.sha384(b"conclave test\0" + what.encode()).digest()
