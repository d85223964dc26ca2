"""When a host is ready, and how often its store is asked."""

from __future__ import annotations

import asyncio

import pytest

from conclave.errors import StoreUnavailable
from conclave.host import health
from conclave.host.health import Health


class Store:
    """Answers as told."""

    def __init__(self) -> None:
        self.asked = 0
        self.works = True

    async def put(self, name: str, data: bytes, *, expected: str | None = None) -> str:
        raise AssertionError("a probe writes nothing")

    async def get(self, name: str) -> tuple[bytes, str] | None:
        self.asked += 1
        await asyncio.sleep(0)
        if not self.works:
            raise StoreUnavailable("gone")
        return None

    async def list(self, prefix: str) -> list[str]:
        raise AssertionError("a probe reads little")

    async def delete(self, name: str) -> None:
        raise AssertionError("a probe writes nothing")

    async def close(self) -> None: ...


@pytest.mark.spec("HTTP-21")
def test_every_reason_is_told() -> None:
    up, store = [False], Store()
    store.works = False

    async def main() -> None:
        probe = Health(up=lambda: up[0], store=store)
        probe.draining = True
        assert await probe.reasons() == ["draining", "enclave", "store"]
        probe.draining, up[0] = False, True
        assert await probe.reasons() == ["store"]

    asyncio.run(main())


@pytest.mark.spec("HTTP-21")
def test_the_store_is_asked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
    store = Store()

    async def main() -> None:
        probe = Health(up=lambda: True, store=store)
        assert await asyncio.gather(*(probe.reasons() for _ in range(50))) == [[]] * 50
        assert store.asked == 1
        store.works = False
        now[0] += 0.9
        assert await probe.reasons() == []
        now[0] += 0.2
        assert await asyncio.gather(*(probe.reasons() for _ in range(50))) == [["store"]] * 50
        assert store.asked == 2

    asyncio.run(main())


@pytest.mark.spec("HTTP-21")
def test_a_silent_store_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "STORE_SECONDS", 0.01)
    store = Store()

    async def silent(name: str) -> None:
        await asyncio.Event().wait()

    store.get = silent  # type: ignore[method-assign,assignment]

    async def main() -> None:
        assert await Health(up=lambda: True, store=store).reasons() == ["store"]

    asyncio.run(main())
