"""The shape of Nitro documents: CBOR, COSE, members, sizes. Nothing is verified here."""

from __future__ import annotations

import contextlib
import random
import time
import tracemalloc
from typing import Any

import cbor2
import pytest
from tests._aws import MADE_MS, PCRS, Aws, chain, emulated, nitrotpm

from conclave.attestation.nitro import Document, parse_document
from conclave.attestation.nitro.document import MAX_DOCUMENT, MAX_PAYLOAD
from conclave.errors import FormatError

ANY_TAG = (*range(25), 25, 28, 29, 30, 35, 36, 37, 52, 54, 55, 64, 100, 256, 258, 260, 261, 1004, 43000, 55799, 70000)


def refused(raw: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        parse_document(raw)
    return caught.value.code


def with_payload(payload: bytes) -> bytes:
    return Aws(payload=payload).document()


def head(major: int, value: int) -> bytes:
    """The start of an item, in its shortest form."""
    if value < 24:
        return bytes([major << 5 | value])
    size = 1 if value < 1 << 8 else 2 if value < 1 << 16 else 4 if value < 1 << 32 else 8
    return bytes([major << 5 | 23 + size.bit_length()]) + value.to_bytes(size, "big")


@pytest.mark.spec("NITRO-1", "NITRO-3", "NITRO-4")
@pytest.mark.parametrize("tagged", [False, True])
def test_the_document_that_all_others_are_made_from_parses(tagged: bool) -> None:
    document = parse_document(Aws(tagged=tagged).document())
    assert document.module_id == "i-0123456789abcdef0-enc0123456789abcdef"
    assert document.timestamp_ms == MADE_MS
    assert document.pcrs == PCRS
    assert document.certificate == chain()[0]
    assert document.cabundle == tuple(reversed(chain()[1:]))
    assert document.signed
    assert document.kind == "enclave"
    assert (document.public_key, document.user_data, document.nonce) == (None, None, None)


@pytest.mark.spec("NITRO-1")
def test_every_truncation_is_refused() -> None:
    for tagged in (False, True):
        raw = Aws(tagged=tagged).document()
        for size in range(len(raw)):
            assert refused(raw[:size]) == "document-format"


@pytest.mark.spec("NITRO-1")
def test_nothing_follows() -> None:
    raw = Aws().document()
    for tail in (b"\0", b"\xff", b"\xf6", raw):
        assert refused(raw + tail) == "document-format"
    assert refused(with_payload(Aws().payload_bytes() + b"\xf6")) == "document-format"


@pytest.mark.spec("NITRO-1")
def test_sizes_are_bounded() -> None:
    assert refused(b"") == "document-format"
    assert refused(bytes(MAX_DOCUMENT + 1)) == "document-format"
    assert refused(with_payload(b"")) == "document-format"
    # An empty nonce in as many pieces as it takes.
    payload = Aws().payload_bytes()
    assert payload[-1:] == b"\xf6"
    for size in (MAX_PAYLOAD, MAX_PAYLOAD + 1):
        padded = payload[:-1] + b"\x5f" + b"\x40" * (size - len(payload) - 1) + b"\xff"
        assert len(padded) == size
        if size > MAX_PAYLOAD:
            assert refused(with_payload(padded)) == "document-format"
        else:
            assert parse_document(with_payload(padded)).nonce == b""


@pytest.mark.spec("NITRO-1")
def test_the_outer_structure_has_definite_lengths() -> None:
    raw = Aws().document()
    assert raw[0] == 0x84
    assert refused(b"\x9f" + raw[1:] + b"\xff") == "document-format"
    assert raw[1:6] == b"\x44\xa1\x01\x38\x22"
    assert refused(raw[:1] + b"\x5f" + raw[1:6] + b"\xff" + raw[6:]) == "document-format"
    assert refused(raw[:6] + b"\xbf\xff" + raw[7:]) == "document-format"


@pytest.mark.spec("NITRO-1")
def test_the_payload_may_leave_lengths_open() -> None:
    members = cbor2.loads(Aws().payload_bytes())
    items = b"".join(cbor2.dumps(name) + cbor2.dumps(value) for name, value in members.items())
    document = parse_document(with_payload(b"\xbf" + items + b"\xff"))
    assert document.pcrs == PCRS
    assert refused(with_payload(b"\xbf" + items)) == "document-format"


@pytest.mark.spec("NITRO-2")
@pytest.mark.parametrize("tag", ANY_TAG)
def test_tags_are_refused(tag: int) -> None:
    raw = Aws().document()
    if tag != 18:
        assert refused(head(6, tag) + raw) == "document-format"
    assert refused(b"\xd2" + head(6, tag) + raw) == "document-format"
    payload = Aws().payload_bytes()
    assert refused(with_payload(head(6, tag) + payload)) == "document-format"
    for value in (cbor2.dumps("SHA384"), cbor2.dumps(b"x"), cbor2.dumps(1), cbor2.dumps([0, 1]), cbor2.dumps({})):
        digest = cbor2.dumps("digest")
        changed = payload.replace(digest + cbor2.dumps("SHA384"), digest + head(6, tag) + value)
        assert changed != payload
        assert refused(with_payload(changed)) == "document-format"


@pytest.mark.spec("NITRO-1")
def test_the_tag_has_its_one_form() -> None:
    assert refused(b"\xd8\x12" + Aws().document()) == "document-format"


@pytest.mark.spec("NITRO-2")
def test_repeated_keys_are_refused() -> None:
    payload = Aws().payload_bytes()
    assert payload[0] == 0xA9
    again = cbor2.dumps("digest") + cbor2.dumps("SHA384")
    assert refused(with_payload(b"\xaa" + payload[1:] + again)) == "document-format"
    assert refused(with_payload(b"\xbf" + payload[1:] + again + b"\xff")) == "document-format"
    pcrs = cbor2.dumps(PCRS)
    for key in (b"\x00", b"\x18\x00", b"\xf4", b"\xf9\x00\x00"):
        more = b"\xb1" + pcrs[1:] + key + cbor2.dumps(bytes(48))
        assert refused(with_payload(payload.replace(pcrs, more))) == "document-format"
    raw = Aws().document()
    assert refused(raw[:1] + cbor2.dumps(bytes.fromhex("a2013822013822")) + raw[6:]) == "document-algorithm"


@pytest.mark.spec("NITRO-2")
@pytest.mark.parametrize(
    "bomb",
    [
        b"\x81" * 16_000,
        b"\x9f" * 16_000,
        b"\xa1\x01" * 8_000,
        b"\xa1" * 16_000,
        b"\xbf" * 16_000,
        b"\xd2" * 16_000,
        b"\xc2" * 16_000,
        b"\x5f" * 16_000,
        b"\x9b" + b"\xff" * 8,
        b"\x9b\x00\x00\x00\x7f" + b"\xff" * 4,
        b"\xbb" + b"\xff" * 8,
        b"\xba\x7f\xff\xff\xff",
        b"\x5b" + b"\xff" * 8,
        b"\x5b\x00\x00\x00\x0f" + b"\xff" * 4,
        b"\x7b" + b"\xff" * 8,
        b"\x98\xff" + b"\xf6" * 200,
        b"\x82\xd8\x1c\x81\xd8\x1d\x00\xf6",
        b"\xd8\x23\x78\x20" + b"(a+)+" * 6 + b"$!",
        b"\x9f" + b"\x80" * 16_000 + b"\xff",
        b"\xff",
        b"\x1c",
        b"\xfc",
        b"\xf8\x18",
    ],
    ids=lambda b: b[:5].hex(),
)
def test_bombs_cost_nothing(bomb: bytes) -> None:
    tracemalloc.start()
    began = time.process_time()
    assert refused(bomb) == "document-format"
    assert refused(with_payload(bomb)) == "document-format"
    members = cbor2.loads(Aws().payload_bytes())
    pcrs = cbor2.dumps(members["pcrs"])
    assert refused(with_payload(Aws().payload_bytes().replace(pcrs, bomb[:12_000]))) == "document-format"
    spent, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spent < 0.5
    assert peak < 4 << 20


@pytest.mark.spec("NITRO-2")
def test_text_is_utf8() -> None:
    changed = Aws().payload_bytes().replace(b"fSHA384", b"f\xff\xfe\xfd\xfc\xfb\xfa")
    assert refused(with_payload(changed)) == "document-format"


@pytest.mark.spec("NITRO-3")
@pytest.mark.parametrize(
    "envelope",
    [
        [b"", {}, b""],
        [b"", {}, b"", b"", b""],
        [b"", {}, b"", None],
        ["", {}, b"", b""],
        [b"", [], b"", b""],
        [{1: -35}, {}, b"x", b""],
        [b"", {}, {}, b""],
        {0: b"", 1: {}, 2: b"", 3: b""},
        {},
        [],
        None,
        0,
        "text",
        b"bytes",
        1.5,
        True,
    ],
)
def test_the_envelope_is_cose_sign1(envelope: Any) -> None:
    assert refused(cbor2.dumps(envelope)) == "document-format"
    assert refused(b"\xd2" + cbor2.dumps(envelope)) == "document-format"


@pytest.mark.spec("NITRO-3")
def test_the_unprotected_header_is_empty() -> None:
    for header in ({4: b"key"}, {1: -35}, {"x5chain": b""}):
        assert refused(Aws(unprotected=header).document()) == "document-format"


@pytest.mark.spec("NITRO-3")
@pytest.mark.parametrize(
    "protected",
    [
        "", "a0", "a10126", "a10120", "a1013823", "a101390022", "a1183801", "a2013822044101", "a1013822ff", 
        "bf013822ff", "a1f53822",
    ],
)  # fmt: skip
def test_the_algorithm_is_es384_in_its_one_form(protected: str) -> None:
    assert refused(Aws(protected=bytes.fromhex(protected)).document()) == "document-algorithm"


@pytest.mark.spec("NITRO-3")
def test_a_signature_has_96_bytes() -> None:
    for size in (1, 64, 95, 97, 132):
        assert refused(Aws(signature=b"\1" * size).document()) == "document-format"


CERTIFICATE = chain()[0]
MEMBERS: list[tuple[str, Any]] = [
    *(("module_id", v) for v in ("", "x" * 257, "a\nb", "é", "a\x7f", None, b"i-1", 1, ["i"])),
    *(("digest", v) for v in ("SHA256", "sha384", "", None, b"SHA384", 384, {})),
    *(("timestamp", v) for v in (0, -1, 1 << 64, 1.5, 1e12, True, None, "1", b"1", [1])),
    *(("certificate", v) for v in (b"", bytes(1025), None, "x", [CERTIFICATE])),
    *(("cabundle", v) for v in ([], None, CERTIFICATE, {}, {0: CERTIFICATE}, [CERTIFICATE] * 9, [b""], [bytes(1025)])),
    *(("cabundle", v) for v in ([None], ["x"], [1], [[CERTIFICATE]], [CERTIFICATE, None])),
    *((name, v) for name in ("public_key", "user_data", "nonce") for v in (bytes(1025), "text", 0, False, [b"x"], {})),
]


@pytest.mark.spec("NITRO-4", "NITRO-6")
@pytest.mark.parametrize(("name", "value"), MEMBERS)
def test_members_have_their_types_and_sizes(name: str, value: Any) -> None:
    assert refused(Aws(members={name: value}).document()) == "document-format"


@pytest.mark.spec("NITRO-4")
def test_members_at_their_bounds() -> None:
    members = {"module_id": "x" * 256, "public_key": bytes(1024), "user_data": bytes(1024), "nonce": bytes(1024)}
    members |= {"timestamp": (1 << 64) - 1, "certificate": b"\1" * 1024, "cabundle": [b"\1" * 1024] * 8}
    document = parse_document(Aws(members=members).document())
    assert (document.module_id, document.timestamp_ms) == ("x" * 256, (1 << 64) - 1)
    assert len(document.cabundle) == 8


@pytest.mark.spec("NITRO-4")
@pytest.mark.parametrize("name", ["module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"])
def test_a_missing_member_is_refused(name: str) -> None:
    assert refused(Aws(without=(name,)).document()) == "document-format"


@pytest.mark.spec("NITRO-4")
@pytest.mark.parametrize("name", ["", "extra", "PCRS", "nonce ", 1, None, b"pcrs"])
def test_an_unknown_member_is_refused(name: Any) -> None:
    assert refused(Aws(members={name: 1}).document()) == "document-format"


@pytest.mark.spec("NITRO-4")
@pytest.mark.parametrize("payload", [[], [1], None, 1, "text", b"bytes", {}, True, 1.5])
def test_the_payload_is_a_map(payload: Any) -> None:
    assert refused(with_payload(cbor2.dumps(payload))) == "document-format"


PCR = bytes(48)
REGISTERS: list[Any] = [
    {},
    None,
    [],
    [PCR, PCR, PCR],
    PCRS | {32: PCR},
    PCRS | {-1: PCR},
    PCRS | {16: bytes(32)},
    PCRS | {16: bytes(47)},
    PCRS | {16: bytes(49)},
    PCRS | {16: bytes(64)},
    PCRS | {16: b""},
    PCRS | {16: "x" * 48},
    PCRS | {16: None},
    PCRS | {"16": PCR},
    PCRS | {b"16": PCR},
    PCRS | {16.0: PCR},
    {index: PCR for index in range(33)},
    {False: PCR, True: PCR, 2: PCR},
    {0.0: PCR, 1: PCR, 2: PCR},
]


@pytest.mark.spec("NITRO-5")
@pytest.mark.parametrize("registers", REGISTERS)
@pytest.mark.parametrize("name", ["pcrs", "nitrotpm_pcrs"])
def test_registers_have_an_index_and_48_bytes(name: str, registers: Any) -> None:
    assert refused(Aws(members={name: registers}, without=("pcrs",) if name != "pcrs" else ()).document()) == (
        "document-format"
    )


@pytest.mark.spec("NITRO-5")
def test_as_many_registers_as_there_can_be() -> None:
    for count in (3, 16, 17, 32):
        registers = {index: bytes([index]) * 48 for index in range(count)}
        assert parse_document(Aws(members={"pcrs": registers}).document()).pcrs == registers


@pytest.mark.spec("NITRO-5")
@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_enclave_has_the_registers_of_its_image(index: int) -> None:
    registers = {i: value for i, value in PCRS.items() if i != index}
    assert refused(Aws(members={"pcrs": registers}).document()) == "document-format"


@pytest.mark.spec("NITRO-5")
def test_a_document_of_an_instance() -> None:
    document = parse_document(nitrotpm().document())
    assert document.kind == "nitrotpm"
    assert sorted(document.pcrs) == list(range(24))
    assert parse_document(nitrotpm().but(members={"nitrotpm_pcrs": {4: PCR}}).document()).pcrs == {4: PCR}
    assert refused(Aws(members={"nitrotpm_pcrs": PCRS}).document()) == "document-format"


@pytest.mark.spec("NITRO-6")
@pytest.mark.parametrize("name", ["public_key", "user_data", "nonce"])
def test_what_the_program_chose_may_be_missing(name: str) -> None:
    for case, value in (
        (Aws(without=(name,)), None),
        (Aws(members={name: None}), None),
        (Aws(members={name: b""}), b""),
        (Aws(members={name: b"chosen"}), b"chosen"),
    ):
        assert getattr(parse_document(case.document()), name) == value


@pytest.mark.spec("NITRO-7")
def test_an_emulators_document_parses_so_that_it_can_be_named() -> None:
    assert not parse_document(emulated().document()).signed


def test_registers_of_a_parsed_document_stay() -> None:
    document = parse_document(Aws().document())
    with pytest.raises(TypeError):
        document.pcrs[0] = PCR  # type: ignore[index]


def test_any_bytes_give_a_document_or_an_error() -> None:
    chance = random.Random(1)
    raw = Aws(members={"nonce": b"nonce", "user_data": b""}).document()
    for _ in range(5000):
        data = bytearray(raw)
        for _ in range(chance.randint(1, 4)):
            data[chance.choice((chance.randrange(len(data)), chance.randrange(200)))] = chance.randrange(256)
        with contextlib.suppress(FormatError):
            assert isinstance(parse_document(bytes(data)), Document)
