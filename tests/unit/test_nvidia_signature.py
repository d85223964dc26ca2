"""XML signatures of reference manifests: what they cover, what they do not, and attacks on them."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest
from tests._nvidia import DSIG, SWID, Manifest

from conclave.errors import Error, FormatError, SignatureError


def refused(case: Manifest, kind: type[Error], code: str) -> None:
    with pytest.raises(Error) as caught:
        case.verify()
    assert type(caught.value) is kind, caught.value
    assert caught.value.code == code


WRITTEN: dict[str, Callable[[str], str]] = {
    "empty elements": lambda t: re.sub(r"></(?:ns0|ds):(?:Resource|Entity|Meta|Transform|DigestMethod)>", "/>", t),
    "other quotes": lambda t: t.replace('"', "'"),
    "white space within tags": lambda t: re.sub(r' (\w+="[^"]*")', r"\n   \1", t),
    "white space at the end of tags": lambda t: t.replace("</ds:Reference>", "</ds:Reference >").replace('">', '" >'),
    "attributes in another order": lambda t: re.sub(r"(active=\S+) (alternatives=\S+) (index=\S+)", r"\3 \1 \2", t),
    "namespaces in another order": lambda t: re.sub(r"(xmlns=\S+) (xmlns:ns0=\S+)", r"\2 \1", t),
    "a superfluous declaration": lambda t: t.replace("<ns0:Payload", f'<ns0:Payload xmlns:ns0="{SWID}" xmlns="{SWID}"'),
    "white space around": lambda t: f"\n {t}\n\n",
    "certificates in one line": lambda t: t[:-2000] + t[-2000:].replace("\n", ""),
    "white space around the signature's value": lambda t: re.sub(r"(<ds:SignatureValue>)(.{20})", r"\1\n \2\n", t),
}


@pytest.mark.spec("GPU-17")
@pytest.mark.parametrize("name", WRITTEN)
def test_how_it_is_written_does_not_count(name: str) -> None:
    case = Manifest(written=WRITTEN[name])
    assert case.xml() != case.but(written=str).xml()
    assert case.verify().entries == Manifest().verify().entries


CHANGED: dict[str, Callable[[str], str]] = {
    "a digest": lambda t: t.replace("08" * 48, "09" * 48),
    "white space between elements": lambda t: t.replace("<ns0:Meta", " <ns0:Meta", 1),
    "white space before the signature": lambda t: t.replace("<ds:Signature ", "\n<ds:Signature "),
    "white space behind the signature": lambda t: t.replace("</ds:Signature>", "</ds:Signature>\n"),
    "active": lambda t: t.replace('active="True"', 'active="False"', 1),
    "a version": lambda t: t.replace("550.90.07", "550.90.08"),
    "white space in a value": lambda t: t.replace("softwareCreator tagCreator", "softwareCreator  tagCreator"),
    "a namespace more": lambda t: t.replace("<ns0:Meta ", f'<ns0:Meta xmlns:x="{SWID}" ', 1),
    "a prefix": lambda t: t.replace("<ns0:Entity", "<Entity").replace("</ns0:Entity", "</Entity"),
    "two measurements exchanged": lambda t: re.sub(r'index="([79])"', lambda m: f'index="{16 - int(m[1])}"', t),
    "an attribute more": lambda t: t.replace("<ns0:Entity ", '<ns0:Entity regid="x" ', 1),
    "one measurement gone": lambda t: re.sub(r"<ns0:Resource .*?</ns0:Resource>\n", "", t, count=1),
}


@pytest.mark.spec("GPU-17")
@pytest.mark.parametrize("name", CHANGED)
def test_what_was_signed_counts(name: str) -> None:
    case = Manifest(written=CHANGED[name])
    assert case.xml() != case.but(written=str).xml()
    refused(case, SignatureError, "rim-digest")


STATEMENTS: dict[str, Callable[[str], str]] = {
    "another digest": lambda t: re.sub(
        r"(<ds:DigestValue>)[^<]*", lambda m: m[1] + base64.b64encode(bytes(48)).decode(), t
    ),
    "white space": lambda t: t.replace("<ds:SignedInfo>", "<ds:SignedInfo>\n"),
    "a namespace": lambda t: t.replace("<ds:SignedInfo>", f'<ds:SignedInfo xmlns:x="{DSIG}">'),
    "a namespace around it": lambda t: t.replace("<ds:Signature ", f'<ds:Signature xmlns:x="{DSIG}" '),
}


@pytest.mark.spec("GPU-17")
@pytest.mark.parametrize("name", STATEMENTS)
def test_the_statement_counts(name: str) -> None:
    refused(Manifest(written=STATEMENTS[name]), SignatureError, "rim-signature")


@pytest.mark.spec("GPU-17")
def test_both_halves_of_a_signature_count() -> None:
    """A statement about other content, and content under another's statement."""
    refused(Manifest(digest=bytes(48)), SignatureError, "rim-digest")
    refused(Manifest(signer="other"), SignatureError, "rim-signature")
    other = Manifest(version="560.00").signature()
    moved = Manifest(written=lambda t: re.sub(r"<ds:Signature .*</ds:Signature>", lambda _: other, t, flags=re.DOTALL))
    refused(moved, SignatureError, "rim-digest")


# Signature wrapping, and whatever else moves what is signed away from what is read.


def wrapped(text: str) -> str:
    """The signed document within another one, whose own measurements would be read."""
    inner = text.replace("08" * 48, "ff" * 48)
    return inner.replace("</ns0:Payload>", text + "</ns0:Payload>", 1)


SIGNATURE = re.compile(r"<ds:Signature .*</ds:Signature>", re.DOTALL)
PAYLOAD = re.compile(r"<ns0:Payload.*</ns0:Payload>", re.DOTALL)


def moved(text: str, to: str, place: str) -> str:
    match = SIGNATURE.search(text)
    assert match is not None
    return SIGNATURE.sub("", text).replace(to, place.format(match[0]), 1)


def doubled(text: str, pattern: re.Pattern[str]) -> str:
    return pattern.sub(lambda m: m[0] + m[0].replace("08" * 48, "ff" * 48), text)


ATTACKS: dict[str, Callable[[str], str]] = {
    "document within a document": wrapped,
    "document behind a document": lambda t: t + t,
    "document within an object of the signature": lambda t: t.replace(
        "</ds:Signature>", f"<ds:Object>{SIGNATURE.sub('', t)}</ds:Object></ds:Signature>"
    ),
    "signature in front": lambda t: moved(t, "<ns0:Entity", "{}<ns0:Entity"),
    "signature within the payload": lambda t: moved(t, "</ns0:Payload>", "{}</ns0:Payload>"),
    "signature within the meta element": lambda t: moved(t, "</ns0:Meta>", "{}</ns0:Meta>"),
    "signature outside": lambda t: moved(t, "</SoftwareIdentity>", "</SoftwareIdentity>{}"),
    "signature alone": lambda t: (SIGNATURE.search(t) or t)[0],
    "no signature": lambda t: SIGNATURE.sub("", t),
    "two signatures": lambda t: doubled(t, SIGNATURE),
    "two payloads": lambda t: doubled(t, PAYLOAD),
    "payload without signature": lambda t: PAYLOAD.sub(lambda m: "", t),
    "two meta elements": lambda t: doubled(t, re.compile(r"<ns0:Meta.*?</ns0:Meta>", re.DOTALL)),
    "two statements": lambda t: doubled(t, re.compile(r"<ds:SignedInfo>.*</ds:SignedInfo>", re.DOTALL)),
    "two references": lambda t: doubled(t, re.compile(r"<ds:Reference .*</ds:Reference>", re.DOTALL)),
    "two digests": lambda t: doubled(t, re.compile(r"<ds:DigestValue>.*</ds:DigestValue>")),
    "two values": lambda t: doubled(t, re.compile(r"<ds:SignatureValue>.*</ds:SignatureValue>")),
    "two keys": lambda t: doubled(t, re.compile(r"<ds:KeyInfo>.*</ds:KeyInfo>", re.DOTALL)),
    "a key by its value": lambda t: t.replace("<ds:X509Data>", "<ds:KeyValue></ds:KeyValue><ds:X509Data>"),
    "a key instead of certificates": lambda t: re.sub(r"X509Data", "KeyValue", t),
    "an identifier": lambda t: t.replace("<ds:Signature ", '<ds:Signature Id="x" '),
    "an identifier of the statement": lambda t: t.replace("<ds:SignedInfo>", '<ds:SignedInfo Id="x">'),
    "an identifier of the value": lambda t: t.replace("<ds:SignatureValue>", '<ds:SignatureValue Id="x">'),
    "an identifier of the key": lambda t: t.replace("<ds:KeyInfo>", '<ds:KeyInfo Id="x">'),
    "text within the signature": lambda t: t.replace("<ds:SignedInfo>", "x<ds:SignedInfo>"),
    "text between elements": lambda t: t.replace("<ns0:Meta", "x<ns0:Meta"),
    "text within a measurement": lambda t: t.replace("</ns0:Resource>", "x</ns0:Resource>", 1),
    "an element within a measurement": lambda t: t.replace("</ns0:Resource>", "<ns0:Meta/></ns0:Resource>", 1),
    "an element within a digest": lambda t: t.replace("</ds:DigestValue>", "<ds:X></ds:X></ds:DigestValue>"),
    "an element within the entity": lambda t: t.replace("</ns0:Entity>", "<ns0:Meta></ns0:Meta></ns0:Entity>"),
    "an element within the meta element": lambda t: t.replace("</ns0:Meta>", "<ns0:X></ns0:X></ns0:Meta>"),
    "a certificate of another kind": lambda t: t.replace("ds:X509Certificate", "ds:X509CRL"),
    "a comment within a certificate": lambda t: t.replace("<ds:X509Certificate>", "<ds:X509Certificate><!-- x -->", 1),
    "a comment within a digest": lambda t: t.replace("</ds:DigestValue>", "<!-- x --></ds:DigestValue>"),
    "a document type": lambda t: "<!DOCTYPE SoftwareIdentity>" + t,
    "signature in another namespace": lambda t: t.replace(f'xmlns:ds="{DSIG}"', f'xmlns:ds="{SWID}"'),
    "payload in another namespace": lambda t: t.replace("ns0:Payload", "ns2:Payload"),
    "measurements in another namespace": lambda t: t.replace("ns0:Resource", "ns2:Resource"),
    "root in another namespace": lambda t: t.replace("SoftwareIdentity", "ns2:SoftwareIdentity"),
    "another root": lambda t: t.replace("SoftwareIdentity", "SoftwareIdentities"),
    "attributes of the payload": lambda t: t.replace("<ns0:Payload", '<ns0:Payload date="x"'),
}


@pytest.mark.spec("GPU-12", "GPU-14")
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_anywhere_else(name: str) -> None:
    case = Manifest(written=ATTACKS[name])
    assert case.xml() != case.but(written=str).xml()
    refused(case, FormatError, "rim-format")
