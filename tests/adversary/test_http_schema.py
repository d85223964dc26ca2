"""Whatever the OpenAPI document allows and forbids, sent to a real host: the answers are those of the document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from conclave.host.openapi import DOCUMENT, methods
from conclave.testing import HostServer

pytestmark = [pytest.mark.slow, pytest.mark.spec("HTTP-8")]

SOURCE = """
from conclave.enclave import Enclave, rpc

class Echo(Enclave):
    @rpc
    def echo(self, data: bytes) -> bytes:
        return data
"""
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
)


@pytest.fixture(scope="module")
def server(author: Callable[..., object], serve: Callable[..., HostServer]) -> Iterator[HostServer]:
    with serve(author("echo", SOURCE)) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: HostServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


@pytest.mark.parametrize(("path", "method"), [(path, m) for path, all_ in DOCUMENT["paths"].items() for m in all_])
def test_answers_are_those_of_the_document(api: schemathesis.BaseSchema, path: str, method: str) -> None:
    seen = set()

    @given(case=api[path][method].as_strategy())
    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def attack(case: schemathesis.Case) -> None:
        answer = case.call(timeout=20)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    attack()
    assert seen


def test_the_document_is_the_one_in_the_spec(server: HostServer) -> None:
    served = httpx2.get(server.url + "/openapi.json").json()
    assert served == DOCUMENT
    assert json.loads((Path(__file__).parents[2] / "spec/openapi.json").read_text()) == served


def test_methods() -> None:
    assert methods("/instance") == ("GET", "HEAD", "OPTIONS")
    assert methods("/mail") == ("POST", "OPTIONS")
    assert methods("/outbox/" + "ab" * 16) == ("POST", "OPTIONS")
    assert methods("/instance/" + "ab" * 64) == ("GET", "HEAD", "OPTIONS")
    for elsewhere in ("/elsewhere", "/", "*", "/outbox/", "/mail/x", "/instance/a/b"):
        assert methods(elsewhere) is None
