"""Certificate paths to a pinned anchor, and revocation lists: one thing wrong at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from conclave.attestation._x509 import (
    Certificate,
    RevocationList,
    _signed,
    check_sizes,
    check_time,
    is_self_signed_root,
    path,
    verify_with_point,
)
from conclave.errors import ChainError, Error, ExpiredError, FormatError, RevokedError, SignatureError

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@cache
def key(name: str, curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(
    subject: str,
    issuer: str,
    *,
    authority: bool = True,
    length: int | None = None,
    usage: bool | None = None,
    begin: datetime = NOW - DAY,
    end: datetime = NOW + DAY,
    signer: str | None = None,
    serial: int = 7,
    own: str | None = None,
    critical: bool = False,
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key(own or subject).public_key())
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(authority, length if authority else None), critical=True)
    )
    if usage is not None:
        bits = [not usage, False, False, False, False, usage, usage, False, False]
        builder = builder.add_extension(x509.KeyUsage(*bits), critical=True)
    if critical:
        odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
        builder = builder.add_extension(odd, critical=True)
    return builder.sign(key(signer or issuer), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def walked(*ders: bytes, anchor: bytes | None = None, now: datetime = NOW) -> tuple[str, ...]:
    made = [Certificate(der, what="t") for der in ders]
    pinned = Certificate(anchor or ders[-1], what="t").fingerprint
    return tuple(c.common_name for c in path(made, made[0], anchors={pinned}, now=now, what="t"))


def chain(**changes: dict[str, Any]) -> list[bytes]:
    return [
        certificate("leaf", "ca", **({"authority": False} | changes.get("leaf", {}))),
        certificate("ca", "root", **({"length": 0} | changes.get("ca", {}))),
        certificate("root", "root", **({"length": 1} | changes.get("root", {}))),
    ]


@pytest.mark.spec("EVID-2")
def test_a_path_in_any_order() -> None:
    leaf, ca, root = chain()
    assert walked(leaf, ca, root) == ("leaf", "ca", "root")
    assert walked(leaf, root, ca, anchor=root) == ("leaf", "ca", "root")
    stranger = certificate("stranger", "stranger")
    assert walked(leaf, stranger, root, ca, ca, anchor=root) == ("leaf", "ca", "root")
    # Where the anchor is the leaf itself, nothing else is asked.
    assert walked(root) == ("root",)


REFUSED: dict[str, Callable[[], list[bytes]]] = {
    "a signature of another key": lambda: chain(leaf={"signer": "mallory"}),
    "an authority's signature of another key": lambda: chain(ca={"signer": "mallory"}),
    "an issuer that is no authority": lambda: chain(ca={"authority": False}),
    "an issuer that may not sign certificates": lambda: chain(ca={"usage": False}),
    "a path longer than allowed": lambda: chain(root={"length": 0}),
    "a critical extension of a leaf": lambda: chain(leaf={"critical": True}),
    "a critical extension of an authority": lambda: chain(ca={"critical": True}),
    "a missing step": lambda: [chain()[0], chain()[2]],
    "an issuer of another name": lambda: [
        certificate("leaf", "other", authority=False, signer="ca"), *chain()[1:]
    ],
    "two that issue each other": lambda: [
        certificate("leaf", "a", authority=False), certificate("a", "b"), certificate("b", "a"), chain()[2]
    ],
}  # fmt: skip


@pytest.mark.spec("EVID-2")
@pytest.mark.parametrize("why", REFUSED)
def test_a_path_with_one_thing_wrong(why: str) -> None:
    with pytest.raises(ChainError) as caught:
        walked(*REFUSED[why]())
    assert caught.value.code == "t-chain"


@pytest.mark.spec("EVID-1", "EVID-2")
def test_a_root_that_is_not_pinned() -> None:
    impostor = [
        certificate("leaf", "ca", authority=False),
        certificate("ca", "root"),
        certificate("root", "root", serial=8),
    ]
    with pytest.raises(ChainError):
        walked(*impostor, anchor=chain()[2])
    # Of two certificates of one root key the pinned one counts, wherever it stands.
    leaf, ca, root = chain()
    again = certificate("root", "root", serial=9, end=NOW + 9 * DAY)
    assert walked(leaf, ca, again, root, anchor=root) == ("leaf", "ca", "root")


@pytest.mark.spec("EVID-2")
@pytest.mark.parametrize("who", ["leaf", "ca", "root"])
@pytest.mark.parametrize(("begin", "end"), [(NOW + DAY, NOW + 2 * DAY), (NOW - 2 * DAY, NOW - DAY)])
def test_a_path_outside_its_time(who: str, begin: datetime, end: datetime) -> None:
    with pytest.raises(ExpiredError) as caught:
        walked(*chain(**{who: {"begin": begin, "end": end}}))
    assert caught.value.code == "t-expired"


def test_both_ends_of_a_period_are_inside() -> None:
    check_time(NOW, NOW, now=NOW, what="t")
    for moment in (NOW - timedelta(microseconds=1), NOW + timedelta(microseconds=1)):
        with pytest.raises(ExpiredError, match="t: "):
            check_time(NOW, NOW, now=moment, what="t")


@pytest.mark.spec("EVID-2")
def test_a_key_of_another_name_is_not_the_issuer() -> None:
    ca = Certificate(chain()[1], what="t")
    assert Certificate(chain()[0], what="t").signed_by(ca)
    assert not Certificate(certificate("leaf", "other", authority=False, signer="ca"), what="t").signed_by(ca)


def test_usage_and_names() -> None:
    assert Certificate(certificate("a", "a", usage=True), what="t").authority
    assert not Certificate(certificate("a", "a", usage=False), what="t").authority
    assert Certificate(certificate("a", "a", serial=5), what="t").serial == 5


@pytest.mark.spec("EVID-2")
def test_serial_number_zero_is_read_and_its_signature_checked() -> None:
    der = certificate("leaf", "ca", authority=False, serial=1)
    at = der.index(b"\x02\x01\x01", 8)
    zero = der[: at + 2] + b"\0" + der[at + 3 :]
    parsed = Certificate(zero, what="t")
    assert parsed.serial == 0
    assert parsed.der == zero
    # Only the number was changed, so the signature is now of other bytes: it must not count.
    assert not parsed.signed_by(Certificate(chain()[1], what="t"))
    assert Certificate(der, what="t").signed_by(Certificate(chain()[1], what="t"))


@given(st.binary(max_size=300))
def test_anything_as_a_certificate(data: bytes) -> None:
    with pytest.raises(ChainError):
        Certificate(data, what="t")
    with pytest.raises(FormatError):
        RevocationList(data, what="t")


def test_a_certificate_cut_anywhere() -> None:
    der = certificate("leaf", "ca", authority=False, serial=1)
    for size in range(len(der)):
        with pytest.raises(ChainError):
            Certificate(der[:size], what="t")


# Signatures --------------------------------------------------------------------------


def raw(private: ec.EllipticCurvePrivateKey, data: bytes, size: int, digest: hashes.HashAlgorithm) -> bytes:
    r, s = decode_dss_signature(private.sign(data, ec.ECDSA(digest)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def test_a_signature_with_a_point() -> None:
    numbers = key("q").public_key().public_numbers()
    point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    good = raw(key("q"), b"data", 32, hashes.SHA256())
    verify_with_point(point, good, b"data", code="c")
    wrong = [(point, good, b"date"), (point, good[:-1], b"data"), (point, good + b"\0", b"data")]
    wrong += [(point, bytes(64), b"data"), (b"\1" * 64, good, b"data"), (point[:-1], good, b"data")]
    for p, s, d in wrong:
        with pytest.raises(SignatureError) as caught:
            verify_with_point(p, s, d, code="c")
        assert caught.value.code == "c"


def test_a_signature_with_a_certificates_key() -> None:
    leaf = Certificate(certificate("leaf", "ca", authority=False), what="t")
    leaf.verify(raw(key("leaf"), b"data", 32, hashes.SHA256()), b"data", code="c")
    for bad in (raw(key("ca"), b"data", 32, hashes.SHA256()), bytes(96)):
        with pytest.raises(SignatureError):
            leaf.verify(bad, b"data", code="c")


# Revocation lists --------------------------------------------------------------------


def listing(
    issuer: str = "ca", *, signer: str = "ca", begin: datetime = NOW, end: datetime | None = None,
    revoked: tuple[int, ...] = (), critical: bool = False,
) -> bytes:  # fmt: skip
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name(issuer))
        .last_update(begin)
        .next_update(end or begin + DAY)
        .add_extension(x509.CRLNumber(41), critical=False)
    )
    if critical:
        odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
        builder = builder.add_extension(odd, critical=True)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(key(signer), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def checked(der: bytes, *, now: datetime = NOW) -> RevocationList:
    found = RevocationList(der, what="t-crl")
    found.check(Certificate(chain()[1], what="t"), now=now, what="t-crl")
    return found


@pytest.mark.spec("EVID-3")
def test_a_list_and_whom_it_names() -> None:
    leaf = Certificate(chain()[0], what="t")
    found = checked(listing(revoked=(8, 9)))
    assert (found.number, found.this_update, found.next_update) == (41, NOW, NOW + DAY)
    found.refuse([leaf], what="t")
    with pytest.raises(RevokedError) as caught:
        checked(listing(revoked=(8, 7))).refuse([leaf], what="t")
    assert caught.value.code == "t-revoked"


@pytest.mark.spec("EVID-3")
@pytest.mark.parametrize(
    ("der", "code"),
    [
        (listing(signer="mallory"), "t-crl-issuer"),
        (listing("other"), "t-crl-issuer"),
        (listing(critical=True), "t-crl-issuer"),
        (listing(begin=NOW - 3 * DAY), "t-crl-expired"),
        (listing(begin=NOW + DAY), "t-crl-expired"),
    ],
)
def test_a_list_that_does_not_count(der: bytes, code: str) -> None:
    with pytest.raises(Error) as caught:
        checked(der)
    assert caught.value.code == code


def test_self_signed_roots() -> None:
    assert is_self_signed_root(certificate("root", "root"), "root")
    assert not is_self_signed_root(certificate("root", "root"), "other")
    # The name is somewhere in it, and is not its name.
    assert not is_self_signed_root(certificate("roots", "roots"), "root")
    assert not is_self_signed_root(certificate("root", "root", signer="mallory"), "root")
    assert not is_self_signed_root(certificate("root", "ca"), "root")
    assert not is_self_signed_root(b"", "root")


# Bounds ------------------------------------------------------------------------------


def padded(size: int) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(
        x509.ObjectIdentifier("1.2.3.5"), b"\4\x82" + size.to_bytes(2, "big") + bytes(size)
    )


@pytest.mark.parametrize(("sizes", "fits"), [
    ((), False), ((8192, 8192), True), ((8193,), False), ((8192, 8192, 1), False), ((1,) * 8, True), ((1,) * 9, False),
])  # fmt: skip
def test_how_large_a_chain_is(sizes: tuple[int, ...], fits: bool) -> None:
    chain_ = [bytes(size) for size in sizes]
    if fits:
        check_sizes(chain_)
    else:
        with pytest.raises(FormatError):
            check_sizes(chain_)


@pytest.mark.parametrize(("size", "fits"), [(7000, True), (8000, False)])
def test_how_large_a_certificate_is(size: int, fits: bool) -> None:
    made = (
        x509.CertificateBuilder()
        .subject_name(_name("a"))
        .issuer_name(_name("a"))
        .public_key(key("a").public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .add_extension(padded(size), critical=False)
        .sign(key("a"), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    if fits:
        Certificate(made, what="t")
    else:
        with pytest.raises(ChainError):
            Certificate(made, what="t")


@pytest.mark.parametrize(("size", "fits"), [(500, True), (1100, False)])
def test_how_large_a_list_says_things(size: int, fits: bool) -> None:
    made = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(_name("ca"))
        .last_update(NOW)
        .next_update(NOW + DAY)
        .add_extension(padded(size), critical=False)
        .sign(key("ca"), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )
    if fits:
        RevocationList(made, what="t")
    else:
        with pytest.raises(FormatError):
            RevocationList(made, what="t")


@pytest.mark.parametrize(
    ("curve", "counts"), [(ec.SECP256R1, True), (ec.SECP384R1, True), (ec.SECP521R1, False), (ec.SECP256K1, False)]
)
def test_curves_that_vendors_use(curve: type[ec.EllipticCurve], counts: bool) -> None:
    private, scheme = ec.generate_private_key(curve()), ec.ECDSA(hashes.SHA384())
    assert _signed(private.public_key(), private.sign(b"x", scheme), b"x", scheme, hashes.SHA384()) == counts


@pytest.mark.parametrize(
    ("bits", "exponent", "counts"), [(2048, 65537, True), (2048, 65539, False), (4104, 65537, False)]
)
def test_rsa_keys_that_vendors_use(bits: int, exponent: int, counts: bool) -> None:
    class Slow(rsa.RSAPublicKey):
        """A key as its checker sees it, which would accept anything."""

        key_size = bits

        def public_numbers(self) -> rsa.RSAPublicNumbers:
            return rsa.RSAPublicNumbers(exponent, 1 << bits)

        def verify(self, *arguments: object) -> None:
            return None

    Slow.__abstractmethods__ = frozenset()
    scheme = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    assert _signed(Slow(), b"", b"", scheme, hashes.SHA384()) == counts  # type: ignore[abstract]
