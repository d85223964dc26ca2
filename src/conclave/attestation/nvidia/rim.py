"""Reference integrity manifests: which measurements NVIDIA published for a driver or a VBIOS.

Runs at the relying party. Manifests come from the host and are hostile; the anchors
are what the caller trusts. Nothing is looked up in a document: every element has its one
place, and the signature covers the document's element without the signature itself. So
what is read is what was signed.

Spec: spec/nvidia.md sections 8 and 9. Format: ISO/IEC 19770-2 tags as TCG's RIM information model
uses them, XML Signature (RFC 3275).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final

from conclave import _crypto
from conclave.attestation import _x509
from conclave.attestation.nvidia.markup import Attribute, Element, canonical, malformed, parse
from conclave.errors import ChainError, FormatError, SignatureError

SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384: Final = "http://www.w3.org/2001/04/xmlenc#sha384"
TCG: Final = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
DSIG: Final = "http://www.w3.org/2000/09/xmldsig#"
C14N_11: Final = "http://www.w3.org/2006/12/xml-c14n11"
ENVELOPED: Final = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
ECDSA_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
DIGEST_SHA384: Final = "http://www.w3.org/2001/04/xmldsig-more#sha384"
SPACES: Final = frozenset({SWID, SHA384, TCG, DSIG})
MAX_ENTRIES: Final = 255
MAX_ALTERNATIVES: Final = 16
_KINDS: Final = {"GPU": "gpu", "SWITCH": "switch"}
_WHOLE: Final = {"corpus": "false", "patch": "false", "supplemental": "false"}
_ENTRY: Final = {"type", "index", "active", "alternatives", "name", "size"}
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,2}")
_DIGEST: Final = re.compile(r"[0-9a-f]{96}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.]{1,64}")
_ACTIVE: Final = {"True": True, "False": False}
_KEY_USAGE: Final = "2.5.29.15"
_DIGITAL_SIGNATURE: Final = b"\x80"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one measurement may be: its name, and one to sixteen digests in hex."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rim:
    """A manifest that NVIDIA signed. Only `verify_rim` makes them.

    Attributes:
        kind: `gpu` or `switch`.
        product: the chip, such as `GH100`.
        version: of the driver or VBIOS.
        tag_id: names the manifest.
        entries: by index, from 0: what block index + 1 of a report may hold.
        signer: SHA-256 of the signer's certificate, in hex.
        anchor: SHA-256 of the trust anchor's certificate, in hex.
        valid_from, valid_until: within these all certificates are valid.
    """

    kind: str
    product: str
    version: str
    tag_id: str
    entries: Mapping[int, Entry]
    signer: str
    anchor: str
    valid_from: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest of the known form. Nothing is authentic yet.

    Attributes:
        kind, product, version, tag_id, entries: as in `Rim`.
        content: the bytes of which the signature names the digest.
        digest: that digest.
        signed: the bytes of the signature's own statement.
        signature: over them, r ‖ s.
        certificates: DER, the signer's first.
    """

    kind: str
    product: str
    version: str
    tag_id: str
    entries: Mapping[int, Entry]
    content: bytes
    digest: bytes
    signed: bytes
    signature: bytes
    certificates: tuple[bytes, ...]


def verify_rim(xml: bytes, *, anchors: frozenset[str], now: datetime) -> Rim:
    """Check that NVIDIA signed this manifest.

    Args:
        xml: at most 256 KiB. Untrusted.
        anchors: SHA-256 of the root certificates to trust, in hex.
        now: aware UTC time at which all certificates must be valid.

    Raises:
        FormatError: `rim-format`, `rim-algorithm`: not of the known form.
        VerificationError: by its subclasses, with a code of spec/nvidia.md section 12.

    Spec: spec/nvidia.md section 9 (GPU-14 to GPU-17).
    """
    # 1. It has the one known form, and is signed by the one known algorithm.
    manifest = parse_rim(xml)
    # 2. The signer's certificate leads over the others, in order, to a pinned root; all are valid now.
    given = [_x509.Certificate(der, what="rim") for der in manifest.certificates]
    path = _x509.path(given[1:], given[0], anchors=anchors, now=now, what="rim")
    if list(path) != given:
        raise ChainError("the certificates are not a chain below the root, in order", code="rim-chain")
    # 3. It is for signing manifests, not certificates.
    usage = path[0].extension(_KEY_USAGE) or b""
    if path[0].authority or not usage[3:4] >= _DIGITAL_SIGNATURE:
        raise ChainError("the signer's certificate is not for signing manifests", code="rim-chain")
    # 4. Its key signed the statement of the signature.
    path[0].verify(manifest.signature, manifest.signed, code="rim-signature")
    # 5. The statement is about this manifest.
    if not _crypto.same(_crypto.sha384(manifest.content), manifest.digest):
        raise SignatureError("the manifest is not the one that was signed", code="rim-digest")
    # 6. What was signed.
    return Rim(
        kind=manifest.kind,
        product=manifest.product,
        version=manifest.version,
        tag_id=manifest.tag_id,
        entries=manifest.entries,
        signer=path[0].fingerprint,
        anchor=path[-1].fingerprint,
        valid_from=max(c.not_before for c in path),
        valid_until=min(c.not_after for c in path),
    )


def parse_rim(xml: bytes) -> Manifest:
    """Read a manifest. Verifies nothing. Raises FormatError (GPU-12 to GPU-15)."""
    root = parse(xml, spaces=SPACES)
    if (root.space, root.local) != (SWID, "SoftwareIdentity"):
        raise malformed("it is no software identity")
    entity, meta, payload, signature = _members(
        root, (SWID, "Entity"), (SWID, "Meta"), (SWID, "Payload"), (DSIG, "Signature")
    )
    identity, about = _plain(root), _plain(meta)
    if _WHOLE.items() - identity.items() or about.get("PayloadType") != "direct":
        raise malformed("it does not say of itself that it is whole")
    named = (about.get("edition", ""), about.get("product", ""), about.get("colloquialVersion", ""))
    if named[0] not in _KINDS or not all(_NAME.fullmatch(n) for n in named[1:]) or payload.attributes:
        raise malformed("it does not say what it is about")
    if entity.elements or meta.elements:
        raise malformed("an element is missing, unknown, twice there, or at another place")
    digest, signed, value, certificates = _signature(signature)
    return Manifest(
        _KINDS[named[0]],
        named[1],
        named[2],
        identity.get("tagId", ""),
        _entries(payload),
        canonical(root, without=signature),
        digest,
        canonical(signed),
        value,
        certificates,
    )


def _members(element: Element, *names: tuple[str, str]) -> tuple[Element, ...]:
    """The elements within one, which have to be exactly these, in this order."""
    found = element.elements
    if tuple((each.space, each.local) for each in found) != names:
        raise malformed("an element is missing, unknown, twice there, or at another place")
    return found


def _plain(element: Element) -> dict[str, str]:
    """Attributes without a prefix."""
    return {a.local: a.value for a in element.attributes if not a.space}


def _entries(payload: Element) -> Mapping[int, Entry]:
    found: dict[int, Entry] = {}
    seen: set[int] = set()
    for resource in payload.elements:
        if (resource.space, resource.local) != (SWID, "Resource") or resource.elements:
            raise malformed("something else than measurements is in it")
        index, active, entry = _entry(resource.attributes)
        if index in seen:
            raise malformed("a measurement is there twice")
        seen.add(index)
        if active:
            found[index] = entry
    if not found:
        raise malformed("there are no measurements")
    return MappingProxyType(found)


def _entry(attributes: tuple[Attribute, ...]) -> tuple[int, bool, Entry]:
    said = {a.local: a.value for a in attributes if not a.space}
    values = {a.local: a.value for a in attributes if a.space}
    numbers = said.get("index", ""), said.get("alternatives", "")
    if any(a.space not in ("", SHA384) for a in attributes) or set(said) != _ENTRY:
        raise malformed("a measurement has an attribute too many, or one too few")
    if said["type"] != "Measurement" or said["size"] != "48" or said["active"] not in _ACTIVE:
        raise malformed("a measurement is of another kind")
    if not all(map(_NUMBER.fullmatch, numbers)) or not _NAME.fullmatch(said["name"]):
        raise malformed("a measurement has a number or a name of another form")
    index, count = map(int, numbers)
    if index >= MAX_ENTRIES or not 1 <= count <= MAX_ALTERNATIVES:
        raise malformed("a measurement has a number out of bounds")
    names = [f"Hash{number}" for number in range(count)]
    if set(values) != set(names) or not all(map(_DIGEST.fullmatch, values.values())):
        raise malformed("a measurement has other values than it says, or such of another form")
    return index, _ACTIVE[said["active"]], Entry(said["name"], tuple(values[name] for name in names))


def _signature(signature: Element) -> tuple[bytes, Element, bytes, tuple[bytes, ...]]:
    """Digest, statement, signature over it, and certificates."""
    statement, value, key = _members(signature, (DSIG, "SignedInfo"), (DSIG, "SignatureValue"), (DSIG, "KeyInfo"))
    method, algorithm, reference = _members(
        statement, (DSIG, "CanonicalizationMethod"), (DSIG, "SignatureMethod"), (DSIG, "Reference")
    )
    transforms, hashing, digest = _members(
        reference, (DSIG, "Transforms"), (DSIG, "DigestMethod"), (DSIG, "DigestValue")
    )
    enveloped, canonicalization = _members(transforms, (DSIG, "Transform"), (DSIG, "Transform"))
    (data,) = _members(key, (DSIG, "X509Data"))
    certificates = data.elements
    if any((c.space, c.local) != (DSIG, "X509Certificate") for c in certificates):
        raise malformed("a certificate is something else")
    if not 1 <= len(certificates) <= _x509.MAX_CHAIN:
        raise malformed("there are no certificates, or too many")
    for element in (signature, statement, transforms, digest, value, key, data, *certificates):
        if element.attributes:
            raise malformed("the signature has an attribute that no manifest's has")
    if [(a.name, a.value) for a in reference.attributes] != [("URI", "")]:
        raise malformed("the signature is not over the whole document")
    for element, name in (
        (method, C14N_11),
        (algorithm, ECDSA_SHA384),
        (enveloped, ENVELOPED),
        (canonicalization, C14N_11),
        (hashing, DIGEST_SHA384),
    ):
        if [(a.name, a.value) for a in element.attributes] != [("Algorithm", name)] or element.children:
            raise FormatError("reference manifest: signed by an algorithm that is not known", code="rim-algorithm")
    return _bytes(digest, 48), statement, _bytes(value, 96), tuple(_bytes(c, None) for c in certificates)


def _bytes(element: Element, size: int | None) -> bytes:
    """What a text of Base64 encodes; white space in it does not count."""
    try:
        found = base64.b64decode("".join(element.text.split()), validate=True)
    except ValueError:
        found = b""
    if not found or size not in (None, len(found)):
        raise malformed("a value is not Base64, or has a wrong size")
    return found
