"""What a client is made with: a mistake is told at once, in terms of the argument."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest

from conclave.client import AsyncClient, AsyncMailTransport, Client, MailTransport
from conclave.client._http import no_answer
from conclave.client.client import _Base, _Options, _Stub
from conclave.enclave import Enclave, rpc
from conclave.errors import FormatError
from conclave.rpc.interface import interface_of

CODE = "C:" + "0" * 64
URL = "http://127.0.0.1:1"


@pytest.mark.parametrize("made", [Client, AsyncClient, MailTransport, AsyncMailTransport])
@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("ftp://x", ValueError, "a url begins with http:// or https://"),
        ("127.0.0.1:8765", ValueError, "a url begins with http:// or https://, such as http://127.0.0.1:8765"),
        ("http://", ValueError, "the url names no host"),
        ("http://:8765", ValueError, "the url names no host"),
        ("http://127.0.0.1:99999", ValueError, "the port of a url is a number from 1 to 65535, got 99999"),
        ("http://127.0.0.1:0", ValueError, "the port of a url is a number from 1 to 65535, got 0"),
        ("http://me:secret@127.0.0.1:port", ValueError, "the url cannot be read"),
        ("http://[", ValueError, "the url cannot be read"),
        ("http://a b", ValueError, "the url cannot be read"),
        ("http://me:secret@a..b", ValueError, "the url cannot be read"),
        (None, TypeError, "a url is a str, such as http://127.0.0.1:8765, got NoneType"),
        (8765, TypeError, "a url is a str, such as http://127.0.0.1:8765, got int"),
        ([URL, None], TypeError, "a url is a str, such as http://127.0.0.1:8765, got NoneType"),
    ],
)
def test_what_is_no_address(made: Any, url: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error) as caught:
        made(url, constraint=CODE)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("made", [Client, AsyncClient, MailTransport, AsyncMailTransport])
@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"constraint": None}, TypeError, "constraint= takes a line such as 'C:<digest>', a Constraint, or the Path"),
        ({"constraint": 5}, TypeError, "of a file that holds one, got int"),
        ({"identity": "a.identity"}, TypeError, "got str; Identity.load(path) reads one from its file"),
        ({"identity": Path("a.identity")}, TypeError, "identity= takes an Identity, got "),
        ({"attempts": 0}, ValueError, "attempts= takes a number from 1, got 0"),
    ],
)
def test_options_of_another_kind(made: Any, options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error) as caught:
        made(URL, **{"constraint": CODE, **options})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "c.constraint is empty; expected a constraint as `conclave build` prints it"),
        (b" \n", "c.constraint is empty"),
        (b"FOO:1\n", "c.constraint: unknown clause 'FOO:1' in the constraint"),
        (b"\xff\xfe", "c.constraint holds no constraint: it is no text"),
    ],
)
def test_a_constraint_out_of_a_file(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "c.constraint").write_bytes(data)
    with pytest.raises(FormatError) as caught:
        Client(URL, constraint=tmp_path / "c.constraint")
    assert str(tmp_path / told) in str(caught.value)


class Two(Enclave):
    @rpc
    def first(self) -> int:
        return 1

    @rpc
    def second(self) -> int:
        return 2


@pytest.mark.parametrize(("cls", "has"), [(Two, "it has first, second"), (Enclave, "it has none")])
def test_a_stub_says_what_it_has(cls: type, has: str) -> None:
    stub: Any = _Stub(Client(URL, constraint=CODE), interface_of(cls), _Options("default", None, None))
    with pytest.raises(AttributeError, match=f"^the class has no @rpc method 'nope'; {has}$"):
        stub.nope()
    assert not hasattr(stub, "nope")


def test_addresses_of_every_form() -> None:
    for url in (
        "http://h",
        "https://h:65535/below/",
        "http://me:secret@[::1]:1",
        "http://b\u00fccher.example",
        "http://h_1.",
        "http://[fe80::1%25lo]:1",
    ):
        assert isinstance(Client(url, constraint=CODE), _Base)


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (ConnectionRefusedError(111, "refused"), "nothing answers at http://h:1; is the host running?"),
        (socket.gaierror(-2, "unknown"), "the name in http://h:1 does not resolve to an address"),
        (ssl.SSLError("wrong version"), "TLS fails at http://h:1; does the host serve http://?"),
        (ssl.SSLCertVerificationError("self-signed"), "the TLS certificate of http://h:1 is of another name"),
    ],
)
def test_why_there_is_no_connection(cause: Exception, told: str) -> None:
    request = httpx2.Request("GET", "http://me:secret@h:1/mail?x=1")
    error = httpx2.ConnectError("as the library says", request=request)
    error.__cause__ = cause
    text = no_answer(error, 1.0).text
    assert text.startswith(told)
    assert "secret" not in text
