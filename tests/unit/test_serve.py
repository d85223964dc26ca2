"""Words of `conclave run` and `conclave serve` that need no host."""

from __future__ import annotations

from typing import Any

import pytest

from conclave import _codec
from conclave.cli._serve import delivery, shown
from conclave.enclave import Enclave, rpc
from conclave.enclave.asgi import AsgiEnclave, enclave_of
from conclave.host import log_to_stderr
from conclave.mail.padding import fixed
from conclave.rpc import interface_of


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Never called."""


class Members(AsgiEnclave):
    """An application whose enclave does more."""

    padding = fixed(4096)
    application = staticmethod(application)

    @rpc
    def count(self) -> int:
        return 0


class Plain(Enclave):
    @rpc
    def request(self, head: str, body: bytes) -> bytes:
        return body


@pytest.mark.parametrize("cls", [enclave_of(application), Members])
def test_a_request_to_an_application_runs_at_most_once(cls: type) -> None:
    told = delivery(interface_of(cls).encode(), None, stored=True)
    assert told.startswith("a request runs at most once; GET, HEAD and OPTIONS are sent once more")


@pytest.mark.parametrize("schema", [interface_of(Plain).encode(), _codec.encode([None, [1]]), b"", b"\xc1", b"\x00"])
def test_calls_are_told_by_whether_state_is_kept(schema: bytes) -> None:
    assert "at least once" in delivery(schema, None, stored=True)
    assert "exactly once; the state lasts as long as this command" in delivery(schema, bytes(32), stored=False)
    assert "exactly once, also across restarts" in delivery(schema, bytes(32), stored=True)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("file:disk", "file:disk"),
        ("sqlite:/var/lib/a@b?.db", "sqlite:/var/lib/a@b?.db"),
        ("s3:bucket/prefix", "s3:bucket/prefix"),
        ("postgresql://user:SECRET@db.example:5432/mail?password=SECRET", "postgresql://db.example/…"),
        ("postgres://user:SECRET@SECRET@db.example/mail", "postgres://db.example/…"),
        ("postgresql://?password=a@SECRET", "postgresql:///…"),
        ("postgresql://u:SECRET@[::1/mail", "postgresql:///…"),
    ],
)
def test_a_password_in_the_name_of_a_store_is_not_printed(url: str, name: str) -> None:
    assert shown(url) == name
    assert "SECRET" not in shown(url)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"status": 3}, "the enclave ended (status 3); starting it again: what it held in memory is gone"),
        ({"status": -9}, "the enclave ended (signal 9); starting it again: what it held in memory is gone"),
        ({}, "the enclave ended; starting it again: what it held in memory is gone"),
        ({"code": "platform", "text": "no room"}, "the enclave does not start again: no room; trying again"),
    ],
)
def test_an_end_and_what_follows(event: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr({"event": "restarting", **event})
    assert capsys.readouterr().err == f"  {line}\n"
