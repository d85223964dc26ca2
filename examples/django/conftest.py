"""The same tests, in this process and in an enclave."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from notes.asgi import application

from conclave.client import AsyncMailTransport
from conclave.testing import ServedEnclave, serve_enclave


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def enclave():
    with serve_enclave(Path(__file__).parent) as served:
        yield served


@pytest.fixture(params=["process", "enclave"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[httpx2.AsyncClient]:
    if request.param == "process":
        transport = httpx2.ASGITransport(application)
    else:
        served: ServedEnclave = request.getfixturevalue("enclave")
        transport = AsyncMailTransport(served.url, constraint=served.constraint)
    async with httpx2.AsyncClient(transport=transport, base_url="https://app") as made:
        yield made
