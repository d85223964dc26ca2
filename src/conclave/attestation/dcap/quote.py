"""Quotes of SGX enclaves and TDX domains, versions 3, 4 and 5: parsing.

Runs at the relying party. Every byte is the host's; nothing here is authentic until
`verify_quote`.

Spec: spec/dcap.md section 2 (DCAP-1 to DCAP-4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from conclave.attestation import _der, _x509
from conclave.attestation.claims import MAX_EVIDENCE
from conclave.attestation.dcap._layout import (
    BODIES,
    HEADER,
    SGX_REPORT,
    TD_REPORT_10,
    fields,
    number,
    size_of,
)
from conclave.errors import FormatError

TEE_TYPES: Final = {0x00000000: "sgx", 0x00000081: "tdx"}
ECDSA_P256: Final = 2
QE_REPORT_CERTIFICATION: Final = 6
PCK_CHAIN: Final = 5
# Kinds of certification data that name the processor instead of certifying it: a PPID in
# the clear, or encrypted to Intel with RSA of 2048 or 3072 bits. CPUSVN, PCESVN and PCE id
# follow; Intel's own sample of the first kind leaves the last out.
IDENTIFIERS: Final = {1: (34, 36), 2: (276,), 3: (404,)}
# Versions 3 and 4 do not say type and size of the body: the TEE implies them.
_IMPLIED: Final = {"sgx": (1, size_of(SGX_REPORT)), "tdx": (2, size_of(TD_REPORT_10))}
_SGX_DEBUG: Final = 0x02


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote by its parts. Nothing is authentic yet.

    Attributes:
        version: 3, 4 or 5.
        tee: `sgx` or `tdx`.
        body_type: 1 SGX report, 2 TD report 1.0, 3 TD report 1.5.
        header, body: fields by the names of spec/dcap.md section 2.
        signed: header and body, which the attestation key signed.
        signature: r ‖ s, by the attestation key.
        attestation_key: x ‖ y, a point of P-256.
        qe_report: the quoting enclave's own report, 384 bytes, and `qe` its fields.
        qe_report_signature: r ‖ s, by the PCK key.
        qe_auth_data: what the quoting enclave bound together with the key.
        certification_type: 5 is a certificate chain; 1, 2 and 3 name a processor.
        certification: its bytes.
        chain: DER certificates, leaf first and root last where they form a chain; empty
            if the quote carries none.
        trailing: how many bytes follow the quote proper (versions 4 and 5).
    """

    version: int
    tee: str
    body_type: int
    header: Mapping[str, bytes]
    body: Mapping[str, bytes]
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe: Mapping[str, bytes]
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification_type: int
    certification: bytes
    chain: tuple[bytes, ...]
    trailing: int

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the program chose."""
        return self.body["report_data"]

    @property
    def debug(self) -> bool:
        """SGX: DEBUG; TDX: any of the bits that put a domain under debug."""
        if self.tee == "sgx":
            return bool(self.body["attributes"][0] & _SGX_DEBUG)
        return self.body["td_attributes"][0] != 0


class _Reader:
    """Takes bytes off the front, or refuses."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise FormatError("quote: cut short, or sizes do not add up", code="quote-format")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return number(self.take(size))

    def end(self) -> None:
        if self.left:
            raise FormatError("quote: bytes that belong to nothing", code="quote-format")


def parse_quote(raw: bytes) -> Quote:
    """Read a quote's parts.

    Args:
        raw: at most 65536 bytes. Untrusted.

    Raises:
        FormatError: `quote-format`, `quote-version`, `quote-key-type`, `quote-tee`,
            `quote-body` or `quote-certification`.

    Spec: spec/dcap.md section 2.
    """
    if len(raw) > MAX_EVIDENCE:
        raise FormatError(f"quote: more than {MAX_EVIDENCE} bytes", code="quote-format")
    reader = _Reader(raw)
    header = fields(HEADER, reader.take(size_of(HEADER)))
    version = number(header["version"])
    if version not in (3, 4, 5):
        raise FormatError("quote: only versions 3, 4 and 5 are known", code="quote-version")
    if number(header["attestation_key_type"]) != ECDSA_P256:
        raise FormatError("quote: only attestation keys of ECDSA P-256 are known", code="quote-key-type")
    tee, body_type, body = _body(reader, header, version)
    signed = raw[: reader.at]
    auth = _Reader(reader.take(reader.number(4)))
    # Quoting services return version 4 and 5 in buffers of a fixed size. What is behind the
    # quote is signed by nobody and read by nobody.
    if version == 3:
        reader.end()
    signature, key = auth.take(64), auth.take(64)
    if version > 3:
        auth = _nested(auth)
    report = auth.take(size_of(SGX_REPORT))
    report_signature = auth.take(64)
    auth_data = auth.take(auth.number(2))
    kind = auth.number(2)
    certification = auth.take(auth.number(4))
    auth.end()
    return Quote(
        version,
        tee,
        body_type,
        header,
        body,
        signed,
        signature,
        key,
        report,
        fields(SGX_REPORT, report),
        report_signature,
        auth_data,
        kind,
        certification,
        _chain(kind, certification),
        reader.left,
    )


def _body(reader: _Reader, header: Mapping[str, bytes], version: int) -> tuple[str, int, Mapping[str, bytes]]:
    named = TEE_TYPES.get(number(header["tee_type"]))
    if named is None or (version == 3 and named != "sgx"):
        raise FormatError("quote: not of a TEE that this version of quotes is for", code="quote-tee")
    kind, size = (reader.number(2), reader.number(4)) if version == 5 else _IMPLIED[named]
    if kind == 4:
        raise FormatError(
            "quote: the extended TD report 1.5 (body type 4) is not supported: what its fields mean for a domain "
            "that migrated is not published",
            code="quote-body",
        )
    tee, layout = BODIES.get(kind, ("", SGX_REPORT))
    if tee != named or size != size_of(layout):
        raise FormatError("quote: the body is of an unknown type, or not of the type's TEE or size", code="quote-body")
    return tee, kind, fields(layout, reader.take(size_of(layout)))


def _nested(auth: _Reader) -> _Reader:
    """Versions 4 and 5 wrap the quoting enclave's part in certification data of its own."""
    if auth.number(2) != QE_REPORT_CERTIFICATION:
        raise FormatError("quote: certification data without a QE report", code="quote-certification")
    inner = _Reader(auth.take(auth.number(4)))
    auth.end()
    return inner


def _chain(kind: int, data: bytes) -> tuple[bytes, ...]:
    if kind == PCK_CHAIN:
        try:
            chain = _x509.split_pem(data) if data[:1] == b"-" else _der.split(data, most=_x509.MAX_CHAIN)
            _x509.check_sizes(chain)
        except FormatError:
            raise FormatError(
                "quote: the certificate chain does not parse, or is too large", code="quote-certification"
            ) from None
        return leaf_first(chain)
    if len(data) not in IDENTIFIERS.get(kind, ()):
        raise FormatError("quote: certification data of an unknown kind or size", code="quote-certification")
    return ()


def leaf_first(chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """The certificates from the leaf to the root, if their names form one chain; else as they came.

    For finding the root that a quote claims. Verification follows signatures, not this order.
    """
    try:
        names = [_names(c) for c in chain]
    except FormatError:
        return tuple(chain)
    issuers = {issuer for issuer, subject in names if issuer != subject}
    order = [i for i, (issuer, subject) in enumerate(names) if subject not in issuers and issuer != subject]
    if len(order) != 1:
        return tuple(chain)
    while len(order) < len(chain):
        above = [i for i, (_, subject) in enumerate(names) if subject == names[order[-1]][0] and i not in order]
        if not above:
            return tuple(chain)
        order.append(above[0])
    return tuple(chain[i] for i in order)


def _names(certificate: bytes) -> tuple[bytes, bytes]:
    """Issuer and subject, as encoded."""
    signed = _der.parse(certificate).children()[:1]
    parts = signed[0].children() if signed else ()
    # An explicit version, if there is one, precedes serial, algorithm, issuer, validity, subject.
    start = 1 if parts and parts[0].tag == 0xA0 else 0
    if len(parts) < start + 5:
        raise FormatError("a certificate is cut short")
    return parts[start + 2].contents, parts[start + 4].contents
