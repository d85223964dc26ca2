"""The SGX extension of PCK certificates, member by member."""

from __future__ import annotations

from typing import Any

import pytest
from tests._intel import NOW, Intel, intel, keys

from conclave.attestation import _x509
from conclave.attestation.dcap.pck import PckExtension, pck_extension
from conclave.errors import VerificationError
from conclave.platform import pki
from conclave.platform.pki import _oid, der

INTEGER, OCTETS, ENUMERATED, SEQUENCE = 2, 4, 10, 0x30


def member(name: str, tag: int, value: bytes) -> bytes:
    return der(SEQUENCE, _oid(name) + der(tag, value))


def tcb(**changes: bytes) -> bytes:
    parts = {f"2.{i}": member(f"2.{i}", INTEGER, bytes((i,))) for i in range(1, 17)}
    parts |= {"2.17": member("2.17", INTEGER, b"\1\2"), "2.18": member("2.18", OCTETS, bytes(range(16)))}
    return b"".join((parts | changes).values())


CONFIGURATION = b"".join(member(f"7.{i}", 1, v) for i, v in ((1, b"\xff"), (2, b"\0"), (3, b"\xff")))
PARTS = {
    "1": member("1", OCTETS, bytes(range(16))),
    "2": member("2", SEQUENCE, tcb()),
    "3": member("3", OCTETS, b"\0\7"),
    "4": member("4", OCTETS, bytes(range(6))),
    "5": member("5", ENUMERATED, b"\1"),
    "6": member("6", OCTETS, bytes(range(16, 32))),
    "7": member("7", SEQUENCE, CONFIGURATION),
}


def extension(**changes: bytes) -> bytes:
    return der(SEQUENCE, b"".join((PARTS | {k.removeprefix("_"): v for k, v in changes.items()}).values()))


def certificate(data: bytes | None) -> Any:
    platform, _ = keys()
    return pki._certificate(
        "Conclave Simulated PCK Certificate", platform.pck_key, platform.ca, platform.ca_key, now=NOW, authority=False,
        extension=data,
    )  # fmt: skip


def read(data: bytes | None) -> PckExtension:
    return pck_extension(_x509.Certificate(certificate(data).public_bytes(pki.serialization.Encoding.DER), what="pck"))


def carrying(made: Intel, data: bytes) -> Intel:
    platform, _ = keys()
    return made.but(certification=(5, pki.pem(certificate(data), platform.ca, platform.root).encode()))


@pytest.mark.spec("DCAP-10")
def test_every_member_is_read() -> None:
    assert read(extension()) == PckExtension(
        ppid=bytes(range(16)),
        components=bytes(range(1, 17)),
        pce_svn=258,
        cpu_svn=bytes(range(16)),
        pce_id=b"\0\7",
        fmspc=bytes(range(6)),
        sgx_type="scalable",
        platform_instance_id=bytes(range(16, 32)),
        configuration=frozenset({"dynamic-platform", "smt"}),
    )


@pytest.mark.spec("DCAP-10")
def test_instance_and_configuration_may_be_missing() -> None:
    found = read(extension(_6=b"", _7=b""))
    assert (found.platform_instance_id, found.configuration) == (b"", frozenset())
    assert read(extension(_7=member("7", SEQUENCE, b""))).configuration == frozenset()
    kinds = [read(extension(_5=member("5", ENUMERATED, bytes((i,))))).sgx_type for i in range(3)]
    assert kinds == ["standard", "scalable", "scalable-with-integrity"]


WRONG = {
    "nothing": None,
    "empty": b"",
    "an empty sequence": b"\x30\0",
    "bytes behind it": extension() + b"\0",
    **{f"no member {i}": extension(**{f"_{i}": b""}) for i in range(1, 6)},
    "a member twice": extension(_6=PARTS["6"] * 2),
    "a member that is not known": extension(_6=member("8", OCTETS, bytes(16))),
    "a member of another arc": extension(_6=der(SEQUENCE, der(6, bytes.fromhex("2a864886f84d020d0106")) + b"\4\0")),
    "a member without a value": extension(_6=der(SEQUENCE, _oid("6"))),
    "a member with two values": extension(_6=der(SEQUENCE, _oid("6") + der(4, bytes(16)) * 2)),
    "a PPID that is short": extension(_1=member("1", OCTETS, bytes(15))),
    "a PPID that is a number": extension(_1=member("1", INTEGER, bytes(range(1, 17)))),
    "a PCE id that is long": extension(_3=member("3", OCTETS, bytes(3))),
    "an FMSPC that is short": extension(_4=member("4", OCTETS, bytes(5))),
    "a type that is not known": extension(_5=member("5", ENUMERATED, b"\3")),
    "a type that is an integer": extension(_5=member("5", INTEGER, b"\1")),
    "an instance that is short": extension(_6=member("6", OCTETS, bytes(15))),
    "a component missing": extension(_2=member("2", SEQUENCE, tcb(**{"2.5": b""}))),
    "a component twice": extension(_2=member("2", SEQUENCE, tcb(**{"2.5": member("2.5", INTEGER, b"\5") * 2}))),
    "a component that is not known": extension(_2=member("2", SEQUENCE, tcb() + member("2.19", INTEGER, b"\1"))),
    "a component above 255": extension(_2=member("2", SEQUENCE, tcb(**{"2.5": member("2.5", INTEGER, b"\1\0")}))),
    "a PCE SVN above 65535": extension(_2=member("2", SEQUENCE, tcb(**{"2.17": member("2.17", INTEGER, b"\1\0\0")}))),
    "a CPU SVN that is short": extension(_2=member("2", SEQUENCE, tcb(**{"2.18": member("2.18", OCTETS, bytes(15))}))),
    "a configuration that is not known": extension(_7=member("7", SEQUENCE, member("7.4", 1, b"\xff"))),
    "a configuration that is neither": extension(_7=member("7", SEQUENCE, member("7.1", 1, b"\1"))),
    "a configuration twice": extension(_7=member("7", SEQUENCE, member("7.1", 1, b"\xff") * 2)),
}


@pytest.mark.spec("DCAP-10")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(VerificationError) as caught:
        read(WRONG[name])
    assert type(caught.value) is VerificationError
    assert caught.value.code == "pck-extension"


@pytest.mark.spec("DCAP-10", "DCAP-23")
def test_the_configuration_of_a_platform_is_told() -> None:
    made = intel().but(tcb_info={"pceId": "0007", "fmspc": bytes(range(6)).hex()})
    levels = [dict(made.tcb_info["tcbLevels"][0])]
    levels[0]["tcb"] = levels[0]["tcb"] | {"sgxtcbcomponents": [{"svn": i} for i in range(1, 17)]}
    claims = carrying(made.but(tcb_info={"tcbLevels": levels}), extension()).verify()
    assert claims.remarks == {"dynamic-platform", "smt"}
    assert claims.platform == bytes(range(16)).hex()
    assert claims.details["sgx_type"] == "scalable"
    assert claims.details["platform_instance_id"] == bytes(range(16, 32)).hex()
    assert (claims.details["pce_svn"], claims.details["tcb_components"]) == (258, bytes(range(1, 17)).hex())
    quiet = member("7", SEQUENCE, member("7.2", 1, b"\xff"))
    assert carrying(made.but(tcb_info={"tcbLevels": levels}), extension(_7=quiet)).verify().remarks == {"cached-keys"}
