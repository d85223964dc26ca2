"""One value has one encoding, and everything else is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conclave.attestation import _der
from conclave.attestation._der import Element
from conclave.errors import FormatError


def value(text: str) -> Element:
    return _der.parse(bytes.fromhex(text))


@pytest.mark.parametrize(
    ("text", "number"),
    [("020100", 0), ("02017f", 127), ("02020080", 128), ("020200ff", 255), ("02020100", 256), ("0203010000", 65536)],
)
def test_numbers(text: str, number: int) -> None:
    assert value(text).number(65536) == number
    assert value("0a" + text[2:]).number(65536, tag=_der.ENUMERATED) == number
    if number:
        with pytest.raises(FormatError):
            value(text).number(number - 1)


@pytest.mark.parametrize(
    "text", ["0200", "020180", "0201ff", "02020000", "0202007f", "0202ff00", "0403010000", "020a00ffffffffffffffffff"]
)
def test_numbers_that_are_negative_large_or_longer_than_they_must_be(text: str) -> None:
    with pytest.raises(FormatError):
        value(text).number(2**80)


@pytest.mark.parametrize(("text", "truth"), [("0101ff", True), ("010100", False)])
def test_booleans(text: str, truth: bool) -> None:
    assert value(text).boolean() is truth


@pytest.mark.parametrize("text", ["0100", "010101", "0102ffff", "0102ff00", "0201ff"])
def test_booleans_that_are_neither(text: str) -> None:
    with pytest.raises(FormatError):
        value(text).boolean()


def test_octets_have_the_size_that_is_asked_for() -> None:
    assert value("0402abcd").octets(2) == b"\xab\xcd"
    assert value("0400").octets(0) == b""
    for text, size in (("0402abcd", 1), ("0402abcd", 3), ("0302abcd", 2)):
        with pytest.raises(FormatError):
            value(text).octets(size)


def test_identifiers_are_taken_as_they_are_encoded() -> None:
    assert value("060a2a864886f84d010d0102").identifier() == bytes.fromhex("2a864886f84d010d0102")
    with pytest.raises(FormatError):
        value("0402abcd").identifier()


def test_sequences() -> None:
    assert value("3000").children() == ()
    assert value("30060201010101ff").children() == (Element(2, b"\1"), Element(1, b"\xff"))
    for text in ("3100", "30020201", "3003020101ff", "0403020101"):
        with pytest.raises(FormatError):
            value(text).children()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "04",
        "0401",
        "040200",
        "0400ff",
        "04000400",
        # Lengths: indefinite, longer than they must be, cut short, more than four octets.
        "0480",
        "04810100",
        "04817f" + "00" * 127,
        "0482008000" + "00" * 127,
        "0482",
        "048201",
        "0485000000000100",
        "04ff",
        # A tag of more than one octet.
        "1f0100",
        "3f810100",
        "04847fffffff00",
    ],
)
def test_what_is_not_one_value(text: str) -> None:
    with pytest.raises(FormatError):
        value(text)


def test_lengths_of_more_than_one_octet() -> None:
    for size, head in ((128, "048180"), (255, "0481ff"), (256, "04820100"), (65536, "0483010000")):
        assert value(head + "00" * size).octets(size) == bytes(size)


def test_values_one_after_the_other() -> None:
    assert _der.split(bytes.fromhex("0201010400"), most=2) == (b"\2\1\1", b"\4\0")
    assert _der.split(b"", most=2) == ()
    for text in ("020101040002", "0201010400040004"):
        with pytest.raises(FormatError):
            _der.split(bytes.fromhex(text), most=2)
    with pytest.raises(FormatError, match="more than 2"):
        _der.split(bytes.fromhex("040004000400"), most=2)


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        element = _der.parse(data)
        head = len(data) - len(element.contents)
        assert data[head:] == element.contents
        for read in (element.children, element.boolean, element.identifier, lambda: element.number(2**64)):
            with contextlib.suppress(FormatError):
                read()
