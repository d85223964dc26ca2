"""The scenarios of load and faults, for seconds: nothing is lost, nothing wrong, nothing grows without bound."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.load import scenarios
from tests.load.scenarios import hosted

from conclave.bundle import Bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("echo", scenarios.SOURCE)


def test_concurrent_clients(bundle: Bundle, tmp_path: Path) -> None:
    with hosted(bundle, tmp_path) as host:
        figures = asyncio.run(scenarios.steady(host, 3, 40))
    assert figures.requests > 40


def test_the_enclave_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    with hosted(bundle, tmp_path) as host:
        asyncio.run(scenarios.enclave_killed(host, 3, 8))


def test_the_host_is_killed(bundle: Bundle, tmp_path: Path) -> None:
    with hosted(bundle, tmp_path) as host:
        asyncio.run(scenarios.host_killed(host, 3, 8))


def test_descriptors_are_exhausted(bundle: Bundle, tmp_path: Path) -> None:
    with hosted(bundle, tmp_path, descriptors=128) as host:
        asyncio.run(scenarios.descriptors(host, 200))


def test_slow_and_half_closed_clients(bundle: Bundle, tmp_path: Path) -> None:
    with hosted(bundle, tmp_path) as host:
        asyncio.run(scenarios.slow_and_half_closed(host, 3, 8, 60))


def test_unknown_channels(bundle: Bundle, tmp_path: Path) -> None:
    with hosted(bundle, tmp_path) as host:
        figures = asyncio.run(scenarios.unknown_channels(host, 3000))
    assert figures.errors == {"409": 3000}
    assert figures.host_mib[1] < figures.host_mib[0] + 20
    assert figures.enclave_mib[1] < figures.enclave_mib[0] + 20


def test_the_store_is_gone(bundle: Bundle, tmp_path: Path) -> None:
    asyncio.run(scenarios.store_gone(bundle, tmp_path, 4, 8))
