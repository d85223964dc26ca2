"""Nitro: the module's messages, its refusals, and the register that names the bundle."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.imitations.nsm import Module
from tests.imitations.processor import EMPTY, Nitro, extend
from tests.imitations.tsm import refuse

from conclave.enclave.drivers import Mounted, cbor
from conclave.enclave.drivers.nsm import MAX_REQUEST, NitroTee, Nsm, user_data
from conclave.errors import FormatError, PlatformError, UnsupportedPolicy

NOW = datetime.now(UTC).replace(microsecond=0)
PROGRAM = Mounted(bytes(range(32)), b"\5" * 32, 3, 4)
NAME = PROGRAM.bundle_id
DATA = bytes(range(64))
NAMED = extend(EMPTY, NAME)


@pytest.fixture
def module() -> Module:
    return Module(Nitro(NOW))


@pytest.fixture
def tee(module: Module) -> NitroTee:
    return NitroTee(Nsm(-1, ioctl=module.ioctl))


# Messages --------------------------------------------------------------------------------


@pytest.mark.spec("DRV-22")
def test_requests_byte_for_byte(module: Module, tee: NitroTee) -> None:
    """As the kernel's own driver and the module's library write them."""
    seen: list[bytes] = []
    answer = module._answer

    def watched(request: bytes) -> bytes:
        seen.append(request)
        return answer(request)

    module._answer = watched  # type: ignore[method-assign]
    tee.identity(PROGRAM)
    tee.evidence(DATA)
    assert seen[0] == b"\x6bDescribeNSM"
    assert seen[1] == b"\xa1\x6bDescribePCR\xa1\x65index\x10"
    assert seen[2] == b"\xa1\x69ExtendPCR\xa2\x65index\x10\x64data\x58\x20" + NAME
    assert seen[4] == b"\xa1\x67LockPCR\xa1\x65index\x10"
    assert seen[-1] == (b"\xa1\x6bAttestation\xa3\x69user_data\x58\x40" + DATA + b"\x65nonce\xf6\x6apublic_key\xf6")


@pytest.mark.spec("DRV-22", "DRV-6")
def test_the_call_of_the_device() -> None:
    calls: list[tuple[int, int, int]] = []

    def ioctl(descriptor: int, number: int, raw: bytearray) -> None:
        address, size, room, room_size = struct.unpack("=QQQQ", raw)
        calls.append((descriptor, number, room_size))
        raw[:] = struct.pack("=QQQQ", address, size, room, claimed)

    for claimed in (0x3001, 1 << 63):  # noqa: B007
        with pytest.raises(PlatformError, match="larger than the room"):
            Nsm(7, ioctl=ioctl).ask("DescribeNSM")
    assert calls == [(7, 0xC0200A00, 0x3000)] * 2
    with pytest.raises(ValueError, match="4096"):
        Nsm(7, ioctl=ioctl).ask("ExtendPCR", {"data": bytes(MAX_REQUEST)})
    for code in (errno.EMSGSIZE, errno.ETIMEDOUT, errno.EPERM):
        with pytest.raises(PlatformError, match=f"NSM device refuses DescribeNSM: {os.strerror(code)}"):
            Nsm(7, ioctl=_raising(refuse(code))).ask("DescribeNSM")


def _raising(error: OSError) -> Callable[..., Any]:
    def ioctl(*arguments: Any) -> Any:
        raise error

    return ioctl


WORDS = (
    *("InvalidArgument", "InvalidIndex", "InvalidResponse", "ReadOnlyIndex", "InvalidOperation"),
    *("BufferTooSmall", "InputTooLarge", "InternalError"),
)


@pytest.mark.spec("DRV-23")
@pytest.mark.parametrize("word", WORDS)
def test_refusals_in_the_modules_words(module: Module, tee: NitroTee, word: str) -> None:
    module.answers["Attestation"] = cbor2.dumps({"Error": word})
    with pytest.raises(PlatformError, match=f"^the NSM refuses Attestation: {word}$"):
        tee.evidence(DATA)


@pytest.mark.spec("DRV-23", "DRV-6")
@pytest.mark.parametrize("word", ["Success", "\x1b[31m", "", 7, None, ["InternalError"], {"InternalError": 1}])
def test_other_refusals_are_not_repeated(module: Module, tee: NitroTee, word: Any) -> None:
    module.answers["Attestation"] = cbor2.dumps({"Error": word})
    with pytest.raises(PlatformError, match=r"^the NSM refuses Attestation: an error this release does not know$"):
        tee.evidence(DATA)


@pytest.mark.spec("DRV-22", "DRV-6")
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00",
        b"\xa0",
        cbor2.dumps("DescribeNSM"),
        cbor2.dumps("Attestation"),
        cbor2.dumps({"Attestation": {}}),
        cbor2.dumps({"Attestation": {"document": "text"}}),
        cbor2.dumps({"Attestation": b"x"}),
        cbor2.dumps({"GetRandom": {"document": b"x"}}),
        cbor2.dumps({"Attestation": {"document": b"x"}, "more": 1}),
        cbor2.dumps({"Attestation": {"document": b"x"}}),
        cbor2.dumps({"Attestation": {"document": b"x"}}) + b"\0",
        cbor2.dumps({"Error": "InternalError", "Attestation": {}}),
        b"\xa2\x61a\x01\x61a\x02",
    ],
)
def test_answers_to_something_else(module: Module, tee: NitroTee, answer: bytes) -> None:
    module.answers["Attestation"] = answer
    with pytest.raises(PlatformError):
        tee.evidence(DATA)


@pytest.mark.spec("DRV-22", "DRV-6")
def test_every_cut_of_an_answer(module: Module, tee: NitroTee) -> None:
    module.registers[16], module.locked = NAMED, set(range(17))
    whole = module._answer(cbor2.dumps({"Attestation": {"user_data": DATA, "nonce": None, "public_key": None}}))
    for size in range(len(whole)):
        module.answers["Attestation"] = whole[:size]
        with pytest.raises(PlatformError):
            tee.evidence(DATA)
    module.answers["Attestation"] = whole
    assert tee.evidence(DATA).data in whole


# Register 16 -----------------------------------------------------------------------------


@pytest.mark.spec("DRV-24", "DRV-2", "CLM-1")
def test_the_register_is_extended_once_and_locked(module: Module, tee: NitroTee) -> None:
    for _ in range(3):
        assert tee.identity(PROGRAM).bundle_id == NAME
    assert module.registers[16] == NAMED
    assert 16 in module.locked
    assert module.asked.count("ExtendPCR") == module.asked.count("LockPCR") == 1
    # Author code comes too late.
    with pytest.raises(PlatformError, match="ReadOnlyIndex"):
        Nsm(-1, ioctl=module.ioctl).ask("ExtendPCR", {"index": 16, "data": b"x"})


@pytest.mark.spec("DRV-24")
def test_a_runtime_that_died_before_it_locked(module: Module, tee: NitroTee) -> None:
    module.registers[16] = NAMED
    tee.identity(PROGRAM)
    assert 16 in module.locked
    assert "ExtendPCR" not in module.asked


@pytest.mark.spec("DRV-24")
@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize(
    "held",
    [b"\1" * 48, extend(NAMED, NAME), extend(EMPTY, b"\7" * 32), NAME + bytes(16), EMPTY],
    ids=["something", "twice", "another bundle", "not extended", "empty"],
)
def test_a_register_that_holds_something_else(module: Module, tee: NitroTee, held: bytes, locked: bool) -> None:
    if held == EMPTY and not locked:
        return
    module.registers[16] = held
    module.locked |= {16} if locked else set()
    with pytest.raises(PlatformError, match="PCR16 holds something else than this bundle"):
        tee.identity(PROGRAM)
    assert module.registers[16] == held


@pytest.mark.spec("DRV-24", "DRV-6")
def test_a_module_that_does_not_do_what_it_says(module: Module, tee: NitroTee) -> None:
    module.answers["LockPCR"] = cbor2.dumps("LockPCR")
    with pytest.raises(PlatformError, match="did not lock PCR16"):
        tee.identity(PROGRAM)
    module.launch()
    module.answers = {}
    lock = module._LockPCR

    def late(index: int) -> Any:
        module.registers[index] = extend(module.registers[index], b"x")
        return lock(index)

    module._LockPCR = late  # type: ignore[method-assign]
    with pytest.raises(PlatformError, match="did not lock PCR16"):
        tee.identity(PROGRAM)
    module.launch()
    module.answers = {"ExtendPCR": cbor2.dumps({"ExtendPCR": {"data": NAMED}})}
    with pytest.raises(PlatformError, match="PCR16 holds something else"):
        tee.identity(PROGRAM)
    for odd in ({"lock": 1, "data": EMPTY}, {"lock": False, "data": bytes(32)}, {"lock": False}, {"data": EMPTY}):
        module.answers = {"DescribePCR": cbor2.dumps({"DescribePCR": odd})}
        with pytest.raises(PlatformError, match="described a register in another form"):
            tee.identity(PROGRAM)


@pytest.mark.spec("DRV-24")
@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"version_major": 2}, "another version"),
        ({"digest": "SHA512"}, "another digest"),
        ({"max_pcrs": 16}, "no register 16"),
        ({"max_pcrs": "32"}, "no register 16"),
    ],
)
def test_another_kind_of_module(about: dict[str, Any], told: str) -> None:
    module = Module(Nitro(NOW), about=about)
    with pytest.raises(PlatformError, match=told):
        NitroTee(Nsm(-1, ioctl=module.ioctl)).identity(PROGRAM)
    assert module.asked == ["DescribeNSM"]


# Documents -------------------------------------------------------------------------------


@pytest.mark.spec("DRV-25", "DRV-1")
@pytest.mark.parametrize("indefinite", [True, False])
def test_report_data_is_the_user_data(module: Module, tee: NitroTee, indefinite: bool) -> None:
    module.processor.indefinite = indefinite
    assert user_data(tee.evidence(DATA).data) == DATA
    for change in (
        lambda draft: draft.payload.update(user_data=b"x" * 64),
        lambda draft: draft.payload.update(user_data=None),
        lambda draft: draft.payload.pop("user_data"),
        lambda draft: draft.payload.update(user_data=DATA[:-1]),
        lambda draft: setattr(draft, "detached", True),
        lambda draft: setattr(draft, "trailing", b"\0"),
    ):
        module.processor.change = change
        with pytest.raises(PlatformError, match="other report data"):
            tee.evidence(DATA)
    module.processor.change = lambda draft: setattr(draft, "tagged", True)
    assert user_data(tee.evidence(DATA).data) == DATA


@pytest.mark.spec("DRV-3")
def test_there_are_no_keys(tee: NitroTee) -> None:
    for policy in ("code", "signer", "product"):
        with pytest.raises(UnsupportedPolicy, match=f"Nitro has no sealing keys.*'{policy}'; take one from the KDS"):
            tee.sealing_key(policy)


# CBOR ------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(0, 99), inner),
    max_leaves=12,
)


@pytest.mark.spec("DRV-22")
@given(VALUES)
def test_cbor_is_what_others_say_it_is(value: Any) -> None:
    encoded = cbor.encode(value)
    assert encoded == cbor2.dumps(value)
    try:
        assert cbor.decode(encoded) == value
    except FormatError as error:
        assert "deeply" in str(error)  # noqa: PT017


@pytest.mark.spec("DRV-22", "DRV-6")
@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(data: bytes) -> None:
    with suppress(FormatError):
        cbor.decode(data)


@pytest.mark.spec("DRV-22")
@pytest.mark.parametrize(
    "data",
    [
        "",
        "18",
        "1817",
        "190001",
        "1900ff",
        "1a0000ffff",
        "1b00000000ffffffff",
        "1c",
        "1c" + "ff" * 16,
        "1f",
        "5f4100ff",
        "7f6161ff",
        "61ff",
        "62c3",
        "f4f4",
        "e0",
        "f7",
        "f97c00",
        "fb3ff0000000000000",
        "f818",
        "ff",
        "a1f401",
        "a14101f4",
        "a2616101616102",
        "a10102a1",
        "bf6161ff",
        "9f",
        "bf",
        "d901f5f4",
        "c1f4",
        "81d2f4",
        "9bffffffffffffffff",
        "bbffffffffffffffff",
        "5bffffffffffffffff00",
        "99" + "0101" + "f4" * 257,
        "9f" + "f4" * 258 + "ff",
        "81" * 10 + "f4",
        "81" * 5000 + "f4",
    ],
)
def test_cbor_of_another_kind(data: str) -> None:
    with pytest.raises(FormatError):
        cbor.decode(bytes.fromhex(data))


@pytest.mark.spec("DRV-22")
def test_cbor_that_the_module_speaks() -> None:
    for data, value in (
        ("3822", -35),
        ("d2f6", None),
        ("9f0102ff", [1, 2]),
        ("bf616101ff", {"a": 1}),
        ("9f" + "f4" * 256 + "ff", [False] * 256),
        ("81" * 8 + "f4", [[[[[[[[False]]]]]]]]),
    ):
        assert cbor.decode(bytes.fromhex(data)) == value
    for odd in (-1, 1.5, object()):
        with pytest.raises(TypeError):
            cbor.encode(odd)  # type: ignore[arg-type]
