"""Honest clients as a program: each calls, one call after the other, until standard input closes.

Prints `round` whenever every one of them was answered since the last, `failed` for each call that
failed, and at the end what became of all calls.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter

from conclave.client import AsyncClient
from conclave.errors import Error


async def main(url: str, constraint: str, name: str, count: int, attempts: int, to: bytes) -> None:
    errors: Counter[str] = Counter()
    boots: set[str] = set()
    told: dict[str, list[int]] = {}
    answered = twice = wrong = full = 0
    waiting = set(range(count))
    stop = False

    async def calls(number: int) -> None:
        nonlocal answered, twice, wrong, full
        caller, sequence = f"{name}/{number}", 0
        async with AsyncClient(url, constraint=constraint, attempts=attempts, timeout_seconds=30) as client:
            while not stop:
                sequence += 1
                try:
                    if to:
                        result = await client.call("tell", caller, sequence, to)
                    else:
                        result = await client.call("run", caller, sequence)
                except Error as error:
                    errors[f"{type(error).__name__}: {str(error)[:80]}"] += 1
                    print("failed", flush=True)
                    await asyncio.sleep(0.05)
                    continue
                if not (isinstance(result, list) and len(result) in (2, 3)):
                    wrong += 1
                    continue
                if len(result) == 3:
                    full += 1
                    await asyncio.sleep(0.05)
                elif to:
                    told.setdefault(caller, []).append(sequence)
                answered += 1
                boots.add(result[0])
                twice += result[1] != "1"
                waiting.discard(number)
                if not waiting:
                    waiting.update(range(count))
                    print("round", flush=True)

    def watch() -> None:
        nonlocal stop
        sys.stdin.read()
        stop = True

    threading.Thread(target=watch, daemon=True).start()
    await asyncio.gather(*(calls(number) for number in range(count)))
    tally = {"answered": answered, "twice": twice, "wrong": wrong, "full": full, "errors": errors}
    print(json.dumps({**tally, "boots": sorted(boots), "told": sorted(told.items())}), flush=True)


if __name__ == "__main__":
    _, url, constraint, name, count, attempts, to = sys.argv
    asyncio.run(main(url, constraint, name, int(count), int(attempts), bytes.fromhex(to)))
