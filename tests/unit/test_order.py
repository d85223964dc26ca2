"""Early mails wait for those before them, and for nothing that will never come."""

from __future__ import annotations

import asyncio

import pytest

from conclave.host.order import Reorder

A, B = bytes(16), b"b" * 16


@pytest.mark.spec("HTTP-1")
def test_an_early_mail_waits_for_the_one_before_it() -> None:
    async def work() -> None:
        reorder = Reorder(3600)
        assert not reorder.in_turn(A, 1)
        waits = asyncio.create_task(reorder.turn(A, 1))
        await asyncio.sleep(0)
        assert not waits.done()
        assert reorder.in_turn(A, 0)
        await waits
        assert reorder.in_turn(A, 2)

    asyncio.run(work())


@pytest.mark.spec("HTTP-1")
def test_what_the_enclave_does_not_know_takes_no_room() -> None:
    async def work() -> None:
        reorder = Reorder(3600)
        assert reorder.in_turn(A, 0)
        reorder.forget(A)
        assert not reorder._sessions
        reorder.forget(A)
        # But whoever waits is not left alone.
        assert not reorder.in_turn(B, 1)
        waits = asyncio.create_task(reorder.turn(B, 1))
        await asyncio.sleep(0)
        reorder.forget(B)
        assert reorder.in_turn(B, 0)
        await waits

    asyncio.run(work())
