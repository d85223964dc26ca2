"""Taking an address and port: what is said when it cannot be had."""

from __future__ import annotations

import resource
import socket

import pytest

from conclave.errors import TransportError
from conclave.host.place import Place

LOOPBACK = "127.0.0.1"


@pytest.mark.spec("HTTP-26")
def test_another_program_listens_there() -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(TransportError) as refused:
            Place(LOOPBACK, port)
    assert str(refused.value) == (
        f"cannot listen on {LOOPBACK}:{port}: another program listens there; choose another port"
        " (--port 0 takes a free one)"
    )


def test_clients_are_refused_until_it_listens() -> None:
    place = Place(LOOPBACK, 0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, place.port))
    place.listen(1)
    socket.create_connection((LOOPBACK, place.port)).close()
    assert place.url("http") == f"http://{LOOPBACK}:{place.port}"
    # Who took it in the same moment learns it then.
    place.close()
    first, second = Place(LOOPBACK, place.port), Place(LOOPBACK, place.port)
    first.listen(1)
    with pytest.raises(TransportError, match="another program listens there"):
        second.listen(1)
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("192.0.2.1", "that is no address of this machine; choose another address"),
        ("a" * 70, "no address is known by that name"),
    ],
)
def test_no_address_of_this_machine(address: str, why: str) -> None:
    with pytest.raises(TransportError) as refused:
        Place(address, 0)
    assert str(refused.value) == f"cannot listen on {address}:0: {why}"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (socket.EAI_NONAME, "no address is known by that name"),
        (socket.EAI_AGAIN, "Temporary failure in name resolution"),
    ],
)
def test_what_the_resolver_says(monkeypatch: pytest.MonkeyPatch, code: int, why: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(TransportError, match=f": {why}$"):
        Place("name", 0)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (PermissionError(13, "Permission denied"), "this user may not take that port; choose another port, above 1023"),
        # Otherwise the system's own words.
        (OSError(105, "No buffer space available"), "No buffer space available"),
    ],
)
def test_what_the_system_says_of_a_port(monkeypatch: pytest.MonkeyPatch, error: OSError, why: str) -> None:
    def refuse(taken: socket.socket, where: object) -> None:
        raise error

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(TransportError, match=f": {why}$"):
        Place(LOOPBACK, 80)


def test_no_descriptor_is_left() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(TransportError, match=r"this process may open no more files; raise `ulimit -n`$"):
            Place(LOOPBACK, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_name_with_an_address_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    found = [(*stream, ("192.0.2.1", 0)), (*stream, (LOOPBACK, 0)), (*stream, (LOOPBACK, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    place = Place("name", 0)
    assert [taken.getsockname() for taken in place.sockets] == [(LOOPBACK, place.port)]
    place.close()
