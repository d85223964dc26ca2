"""Reference values: which measurements are which release, in one signed file.

Runs at the relying party. The file comes from anywhere and is hostile until its
signature under the key that the relying party pinned verifies.

Spec: spec/evidence.md section 7 (EVID-12 to EVID-14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from conclave import _crypto
from conclave._crypto import SigningKey
from conclave.attestation.claims import TEES
from conclave.attestation.tcb import parse_minimum
from conclave.errors import FormatError, SignatureError, VerificationError

MAX_SIZE: Final = 1024 * 1024
PURPOSE: Final = "reference-values"
_RELEASE = re.compile(r"[A-Za-z0-9._-]{1,63}")
_SIZES: Final = {"sgx": (32,), "tdx": (48,), "snp": (48,), "nitro": (48,)}


class ReferenceValues(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Acceptable measurements, known beforehand.

    Attributes:
        version: of this format: 1.
        number: of this file; only grows with one publisher.
        issued: the day it was made, `YYYY-MM-DD`.
        releases: by release and TEE: measurements of the runtime, in hex
            (`binding.runtime_measurement` says of what).
        bundles: by release and bundle id (hex): MRENCLAVEs, where one measurement
            covers runtime and bundle (SGX).
        minimum_tcb: by subject (`snp-milan`), the lowest TCB version that counts as up
            to date; where the vendor publishes a status, besides that.
    """

    version: int
    number: Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
    issued: Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\d$")]
    releases: Mapping[str, Mapping[str, list[str]]]
    bundles: Mapping[str, Mapping[str, list[str]]]
    minimum_tcb: Mapping[str, str]

    def knows(self, release: str, tee: str, measurement: bytes) -> bool:
        """Whether that measurement is that release's runtime on that TEE."""
        return measurement.hex() in self.releases.get(release, {}).get(tee, ())

    def knows_bundle(self, release: str, bundle_id: bytes, measurement: bytes) -> bool:
        """Whether that measurement is that release's runtime together with that bundle."""
        return measurement.hex() in self.bundles.get(release, {}).get(bundle_id.hex(), ())


# What this release of the library knows by itself: no measurement of a runtime on hardware is published yet.
_built_in = ReferenceValues(version=1, number=0, issued="2026-11-24", releases={}, bundles={}, minimum_tcb={})


def built_in() -> ReferenceValues:
    """What this release of the library knows by itself. Tests extend it through `conclave.testing`."""
    return _built_in


def sign_reference_values(values: ReferenceValues, key: SigningKey) -> bytes:
    """The file: one line of JSON, one line of hex (public key ‖ signature, 96 bytes).

    Raises:
        FormatError: what the values say is not well-formed.
    """
    text = msgspec.json.encode(values, order="sorted")
    _check(values)
    return text + b"\n" + (key.public + key.sign(PURPOSE, _crypto.ZERO_DIGEST, text)).hex().encode() + b"\n"


def load_reference_values(data: bytes, *, publisher: bytes, at_least: int = 0) -> ReferenceValues:
    """Read signed reference values.

    Args:
        data: the file, at most 1 MiB. Untrusted.
        publisher: SHA-256 of the Ed25519 public key whose word counts, 32 bytes.
        at_least: number of the newest file accepted before: an older one is refused.

    Raises:
        FormatError: `reference-format`.
        SignatureError: `reference-signature`: of another publisher, or altered.
        VerificationError: `reference-rollback`: older than what was accepted before.
    """
    if len(data) > MAX_SIZE:
        raise _malformed(f"more than {MAX_SIZE} bytes")
    text, _, rest = data.partition(b"\n")
    try:
        seal = bytes.fromhex(rest.decode("ascii").removesuffix("\n"))
    except ValueError:
        seal = b""
    if len(seal) != 96 or rest != seal.hex().encode() + b"\n":
        raise _malformed("the second line is not 96 bytes in hex")
    if not _crypto.same(_crypto.sha256(seal[:32]), publisher):
        raise SignatureError("reference values of another publisher", code="reference-signature")
    try:
        _crypto.verify_signature(seal[:32], PURPOSE, _crypto.ZERO_DIGEST, text, seal[32:])
    except SignatureError:
        raise SignatureError(
            "the signature of the reference values does not verify", code="reference-signature"
        ) from None
    values = _decode(text)
    if values.number < at_least:
        raise VerificationError("reference values older than those accepted before", code="reference-rollback")
    return values


def _decode(text: bytes) -> ReferenceValues:
    try:
        values = msgspec.json.decode(text, type=ReferenceValues)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        raise _malformed("the first line is not JSON of the known form") from None
    _check(values)
    # Duplicate members and other spellings of the same values are told apart by this.
    if msgspec.json.encode(values, order="sorted") != text:
        raise _malformed("the first line is not in canonical form")
    return values


def _check(values: ReferenceValues) -> None:
    if values.version != 1:
        raise _malformed("only version 1 is known")
    for release, tees in values.releases.items():
        if _RELEASE.fullmatch(release) is None or not set(tees) <= set(TEES):
            raise _malformed("a release or TEE has another form of name")
        if not all(_is_hex(m, _SIZES[tee]) for tee, found in tees.items() for m in found):
            raise _malformed("a measurement is not hex of the TEE's size")
    for release, bundles in values.bundles.items():
        if _RELEASE.fullmatch(release) is None or not all(_is_hex(b, (32,)) for b in bundles):
            raise _malformed("a release or bundle id has another form")
        if not all(_is_hex(m, (32,)) for found in bundles.values() for m in found):
            raise _malformed("an MRENCLAVE is not 32 bytes in hex")
    for subject, minimum in values.minimum_tcb.items():
        try:
            parse_minimum(subject, minimum)
        except FormatError:
            raise _malformed("a minimum TCB version has another form") from None


def _is_hex(text: str, sizes: tuple[int, ...]) -> bool:
    return re.fullmatch(r"(?:[0-9a-f]{2})*", text) is not None and len(text) // 2 in sizes


def _malformed(why: str) -> FormatError:
    return FormatError(f"reference values: {why}", code="reference-format")
