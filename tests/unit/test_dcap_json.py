"""Endorsements from a hostile host: any text gives endorsements or FormatError, and one text has one meaning."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._intel import intel, level, platform_level

from conclave.attestation.dcap import _json, parse_endorsements
from conclave.errors import FormatError, VerificationError

CODE = "tcb-info-format"


@pytest.mark.spec("DCAP-5")
@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":1}',
        '{"a":{"b":1,"b":2}}',
        '{"a":[{"b":1,"b":1}]}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":-Infinity}',
        '{"a":1.0}',
        '{"a":1e3}',
        '{"a":12345678901}',
        '{"a":' + "9" * 5000 + "}",
        '{"a":"é"}',
        '{"a":1}x',
        '{"a":1} {}',
        "{'a':1}",
        '{"a":1,}',
        '{"a":"\n"}',
        "",
        "null",
        "true",
        "1",
        '"text"',
        "[]",
        '{"a":' + "[" * 32 + "]" * 32 + "}",
        "[" * 200_000,
        '{"a":' * 100_000,
        '["]",' * 100_000,
        "{" + '"]":[' * 100_000,
        # Deep, though every bracket seems to close at once.
        '{"a":' + '["]",' * 100_000 + "1" + ',"["]' * 100_000 + "}",
        '{"a":"' + "[" * 32 + '"}',
    ],
)
def test_what_is_not_read(text: str) -> None:
    began = time.process_time()
    with pytest.raises(FormatError) as caught:
        _json.parse(text.encode(), code=CODE)
    assert caught.value.code == CODE
    assert time.process_time() - began < 5


def test_no_encoding_is_guessed() -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        with pytest.raises(FormatError):
            _json.parse('{"a":1}'.encode(encoding), code=CODE)


@pytest.mark.spec("DCAP-5")
def test_what_is_read() -> None:
    deep = b"[" * 31 + b"1" + b"]" * 31
    members = _json.parse(b' {"a" : ' + deep + b', "b":"]]]][", "n":2147483647, "h":"aAbB"}\n', code=CODE)
    assert members.names == {"a", "b", "n", "h"}
    assert members.text("b") == "]]]]["
    assert members.number("n", 2**31 - 1) == 2**31 - 1
    assert members.hex("h", 2) == members.hex("h") == b"\xaa\xbb"


Read = Callable[[_json.Members], object]
WRONG: list[tuple[object, Read]] = [
    (1, lambda m: m.text("a")),
    (None, lambda m: m.text("a")),
    ("abc", lambda m: m.hex("a")),
    ("ab cd", lambda m: m.hex("a")),
    (" abcd ", lambda m: m.hex("a")),
    ("zz", lambda m: m.hex("a")),
    ("abcd", lambda m: m.hex("a", 1)),
    ("abcd", lambda m: m.hex("a", 3)),
    (-1, lambda m: m.number("a", 9)),
    (10, lambda m: m.number("a", 9)),
    ("1", lambda m: m.number("a", 9)),
    (True, lambda m: m.number("a", 9)),
    (False, lambda m: m.number("a", 9)),
    (None, lambda m: m.number("a", 9)),
    ([], lambda m: m.number("a", 9)),
    ("2026-01-01T00:00:00", lambda m: m.moment("a")),
    ("2026-01-01T24:00:00Z", lambda m: m.moment("a")),
    ("2026-01-01T23:60:00Z", lambda m: m.moment("a")),
    ("2026-01-01T23:59:60Z", lambda m: m.moment("a")),
    ("0000-01-01T00:00:00Z", lambda m: m.moment("a")),
    ("2026-13-01T00:00:00Z", lambda m: m.moment("a")),
    ("2026-01-01T00:00:00Z ", lambda m: m.moment("a")),
    ("2026-01-01T00:00:00.1Z", lambda m: m.moment("a")),
    ("٢٠٢٦-01-01T00:00:00Z", lambda m: m.moment("a")),
    (1, lambda m: m.moment("a")),
    ([], lambda m: m.members("a")),
    ("", lambda m: m.members("a")),
    ({}, lambda m: m.array("a")),
    ([1], lambda m: m.array("a")),
    ([[]], lambda m: m.array("a")),
    ([{"svn": 1}] * 15, lambda m: m.svns("a")),
    ([{"svn": 1}] * 17, lambda m: m.svns("a")),
    ([{"svn": 1}] * 15 + [{}], lambda m: m.svns("a")),
    ([{"svn": 1}] * 15 + [1], lambda m: m.svns("a")),
    ([{"svn": 1}] * 15 + [{"svn": True}], lambda m: m.svns("a")),
    ([{"svn": 1}] * 15 + [{"svn": "1"}], lambda m: m.svns("a")),
    ([{"svn": 1}] * 15 + [{"svn": -1}], lambda m: m.svns("a")),
    ([{"svn": 1}] * 15 + [{"svn": 65536}], lambda m: m.svns("a")),
    ({"0": 1}, lambda m: m.svns("a")),
    (1, lambda m: m.svns("a")),
]


@pytest.mark.spec("DCAP-5", "DCAP-7")
@pytest.mark.parametrize("at", range(len(WRONG)))
def test_members_of_another_type_or_range(at: int) -> None:
    value, read = WRONG[at]
    for members in ({"a": value}, {}):
        with pytest.raises(FormatError) as caught:
            read(_json.Members(members, CODE))
        assert caught.value.code == CODE


@pytest.mark.parametrize("value", ["INTEL-SA-1", {}, [1], [""], ["a b"], ["é"], ["x" * 65], [None], ["INTEL\n"]])
def test_advisories_are_names(value: object) -> None:
    with pytest.raises(FormatError):
        _json.Members({"advisoryIDs": value}, CODE).advisories()
    assert _json.Members({}, CODE).advisories() == ()
    assert _json.Members({"advisoryIDs": ["INTEL-SA-00615"]}, CODE).advisories() == ("INTEL-SA-00615",)


def test_what_is_not_an_object_has_no_members() -> None:
    for value in ([], "", 1, None, True):
        with pytest.raises(FormatError):
            _json.Members(value, CODE)


# Whole endorsements.


@pytest.mark.spec("DCAP-6")
def test_sizes_are_bounded() -> None:
    data = intel().endorsements()
    parse_endorsements(data + b" " * (524288 - len(data)))
    with pytest.raises(FormatError) as caught:
        parse_endorsements(data + b" " * (524289 - len(data)))
    assert caught.value.code == "endorsements-format"


NUMBERS = [
    ("tcb_info", {"version": "3"}),
    ("tcb_info", {"version": True}),
    ("tcb_info", {"version": 0}),
    ("tcb_info", {"version": 1}),
    ("tcb_info", {"version": 4}),
    ("tcb_info", {"version": None}),
    ("tcb_info", {"tcbType": None}),
    ("tcb_info", {"tcbType": 1}),
    ("tcb_info", {"tcbEvaluationDataNumber": -1}),
    ("tcb_info", {"tcbEvaluationDataNumber": 2**31}),
    ("tcb_info", {"tcbEvaluationDataNumber": None}),
    ("tcb_info", {"fmspc": "00806F0500"}),
    ("tcb_info", {"fmspc": None}),
    ("tcb_info", {"pceId": "00"}),
    ("tcb_info", {"tcbLevels": {}}),
    ("tcb_info", {"tcbLevels": None}),
    ("tcb_info", {"tcbLevels": [1]}),
    ("tcb_info", {"tcbLevels": [platform_level("UpToDate", pce=65536)]}),
    ("tcb_info", {"tcbLevels": [platform_level("UpToDate", pce=-1)]}),
    ("tcb_info", {"tcbLevels": [platform_level("UpToDate", tdx=None)]}),
    ("tcb_info", {"tcbLevels": [platform_level("Fine")]}),
    ("tcb_info", {"tcbLevels": [platform_level("TDRelaunchAdvised")]}),
    ("tcb_info", {"tcbLevels": [platform_level("UpToDate", date="2026-02-11")]}),
    ("tcb_info", {"tdxModule": None}),
    ("tcb_info", {"tdxModule": []}),
    ("tcb_info", {"tdxModule": {"mrsigner": "00" * 48, "attributes": "00" * 8}}),
    ("tcb_info", {"tdxModule": {"mrsigner": "00" * 32, "attributes": "00" * 8, "attributesMask": "00" * 8}}),
    ("tcb_info", {"tdxModuleIdentities": {}}),
    ("tcb_info", {"tdxModuleIdentities": [{}]}),
    ("tcb_info", {"tdxModuleIdentities": [{"id": 1}]}),
    ("qe_identity", {"version": 3}),
    ("qe_identity", {"version": 0}),
    ("qe_identity", {"id": None}),
    ("qe_identity", {"id": "QVE"}),
    ("qe_identity", {"id": 1}),
    ("qe_identity", {"isvprodid": 65536}),
    ("qe_identity", {"isvprodid": "2"}),
    ("qe_identity", {"mrsigner": "00" * 31}),
    ("qe_identity", {"miscselect": "0000000000"}),
    ("qe_identity", {"attributes": "00" * 15}),
    ("qe_identity", {"attributesMask": None}),
    ("qe_identity", {"tcbEvaluationDataNumber": None}),
    ("qe_identity", {"tcbLevels": None}),
    ("qe_identity", {"tcbLevels": [level("UpToDate", 65536)]}),
    ("qe_identity", {"tcbLevels": [level("UpToDate", -1)]}),
    ("qe_identity", {"tcbLevels": [level("SWHardeningNeeded", 4)]}),
]


@pytest.mark.spec("DCAP-7")
@pytest.mark.parametrize("at", range(len(NUMBERS)))
def test_documents_of_a_form_that_is_not_known(at: int) -> None:
    name, change = NUMBERS[at]
    parse_endorsements(intel().endorsements())
    with pytest.raises(FormatError) as caught:
        parse_endorsements(intel().but(**{name: change}).endorsements())
    assert caught.value.code == f"{name.replace('_', '-')}-format"


@pytest.mark.spec("DCAP-7")
def test_what_the_vendor_adds_within_a_version_is_passed_over() -> None:
    more = {"tcb_info": {"comment": {"a": [1]}}, "qe_identity": {"comment": "b"}}
    assert intel().but(**more).verify() == intel().verify()


NAMES = st.sampled_from(("tcb", "svn", "id", "version", "tcbStatus", "isvsvn"))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(p for key, v in inner for p in paths(v, (*at, key)))]


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@pytest.mark.spec("DCAP-5", "DCAP-7")
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_a_document_gives_claims_or_an_error_of_ours(data: st.DataObject) -> None:
    made = intel(5, 3)
    name = data.draw(st.sampled_from(("tcb_info", "qe_identity")))
    document = getattr(made, name)
    new = changed(document, data.draw(st.sampled_from(paths(document))), data.draw(JSON))
    if isinstance(new, dict):
        try:
            made.but(**{name: dict.fromkeys(document)}).but(**{name: new}).verify()
        except (FormatError, VerificationError):
            return


@functools.cache
def once() -> bytes:
    """The same text each time; signatures make every other one different."""
    return intel().endorsements()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_of_the_text_gives_endorsements_or_format_error(data: st.DataObject) -> None:
    text = bytearray(once())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=4) | st.sampled_from((b'"', b"[", b"{"))
        )
    with contextlib.suppress(FormatError):
        parse_endorsements(bytes(text))


def test_text_of_a_document_is_taken_as_it_stands() -> None:
    # The signature is over the text, so another text of the same value is another document.
    parts = json.loads(intel().endorsements())
    spaced = json.dumps(json.loads(parts["tcb_info"]))
    with pytest.raises(VerificationError) as caught:
        intel().verify(endorsements=json.dumps(parts | {"tcb_info": spaced}).encode())
    assert caught.value.code == "tcb-info-signature"
