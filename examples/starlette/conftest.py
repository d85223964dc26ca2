"""The same tests, in this process and in an enclave."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from app import app
from starlette.testclient import TestClient

from conclave.client import MailTransport
from conclave.testing import serve_enclave


@pytest.fixture(scope="session", params=["process", "enclave"])
def client(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    if request.param == "process":
        with TestClient(app, base_url="https://app") as made:
            yield made
    else:
        with serve_enclave(Path(__file__).parent / "app:app") as served:
            transport = MailTransport(served.url, constraint=served.constraint)
            with httpx2.Client(transport=transport, base_url="https://app") as made:
                yield made
