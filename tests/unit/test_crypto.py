from __future__ import annotations

import pickle

import pytest

from conclave import _crypto
from conclave._crypto import SMALL_MARK, Marker
from conclave.errors import DecryptionError, FormatError, SignatureError


def test_a_sealed_secret_opens_only_with_its_key_and_info() -> None:
    key = _crypto.DecryptionKey.generate()
    secret = _crypto.Secret.random()
    sealed = _crypto.seal_secret(key.public, b"info", secret)
    assert len(sealed) == _crypto.SEALED_SECRET_SIZE
    assert key.open_secret(sealed, b"info").insecure_reveal() == secret.insecure_reveal()
    with pytest.raises(DecryptionError):
        key.open_secret(sealed, b"other")
    with pytest.raises(DecryptionError):
        _crypto.DecryptionKey.generate().open_secret(sealed, b"info")
    with pytest.raises(DecryptionError):
        key.open_secret(sealed[:-1], b"info")


@pytest.mark.parametrize("public", [b"", bytes(1215), bytes(1217), b"\xff" * 1216])
def test_a_public_key_of_another_form_is_refused(public: bytes) -> None:
    with pytest.raises(FormatError):
        _crypto.seal_secret(public, b"", _crypto.Secret.random())


@pytest.mark.spec("CLM-10")
def test_a_signature_holds_for_one_purpose_digest_and_body() -> None:
    key = _crypto.SigningKey.generate()
    digest = bytes(range(64))
    signature = key.sign("challenge", digest, b"body")
    _crypto.verify_signature(key.public, "challenge", digest, b"body", signature)
    for purpose in sorted(_crypto.PURPOSES - {"challenge"}):
        with pytest.raises(SignatureError):
            _crypto.verify_signature(key.public, purpose, digest, b"body", signature)
    for other in (("challenge", bytes(64), b"body"), ("challenge", digest, b"bodz")):
        with pytest.raises(SignatureError):
            _crypto.verify_signature(key.public, *other, signature)
    with pytest.raises(ValueError, match="purpose"):
        key.sign("anything", digest, b"")


def test_no_purpose_is_a_prefix_of_another_signed_message() -> None:
    marks = [f"conclave/1 {p}\0" for p in _crypto.PURPOSES]
    assert not [(a, b) for a in marks for b in marks if a != b and b.startswith(a)]


def test_secrets_do_not_show_themselves() -> None:
    for secret in (_crypto.Secret(b"k" * 32), _crypto.SigningKey(b"k" * 32), _crypto.DecryptionKey.generate()):
        assert "kkkk" not in repr(secret)
        with pytest.raises(TypeError):
            pickle.dumps(secret)


@pytest.mark.spec("MAIL-2", "T-16")
@pytest.mark.repeats_a_nonce
def test_the_suite_fails_on_a_repeated_key_and_nonce() -> None:
    key = _crypto.AeadKey(_crypto.Secret.random())
    key.encrypt(bytes(12), b"a", b"")
    with pytest.raises(AssertionError, match="used twice"):
        key.encrypt(bytes(12), b"b", b"")


@pytest.mark.parametrize("size", [4, SMALL_MARK, SMALL_MARK + 1, 10_000])
def test_a_mark_fits_what_was_marked_and_nothing_else(size: int) -> None:
    marker = Marker()
    whole = b"body".ljust(size, b".")
    mark = marker.mark(b"head", whole)
    assert marker.fits(mark, b"head", whole)
    assert marker.fits(mark, b"head", memoryview(whole))
    for head, body in ((b"head", whole[:-1] + b"Y"), (b"heaD", whole), (b"headb", whole[1:]), (b"h", b"ead" + whole)):
        assert not marker.fits(mark, head, body)
    assert not marker.fits(mark, b"head", whole + b".")
    assert not marker.fits(mark, b"head", whole[:-1])


def test_a_mark_of_what_is_large_is_small_and_of_one_marker() -> None:
    marker, large = Marker(), bytes(SMALL_MARK + 1)
    mark = marker.mark(b"head", large)
    assert len(mark) == 4 + 28
    assert marker.mark(b"head", large) != mark
    assert not Marker().fits(mark, b"head", large)
    # Nor is it the mark of any small one.
    assert not marker.fits(mark, mark[1:5], mark[5:])
    assert mark[0] == 0
