"""Runs a target over its corpus and over seeded mutations of it. Same seed, same inputs."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from conclave.errors import Error
from fuzz.targets import TARGETS

CORPUS: Final = Path(__file__).parent / "corpus"
SECONDS: Final = 10.0
_HANGS_AFTER: Final = 20
_NUMBERS: Final = (b"\0", b"\x7f", b"\x80", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xdb\xff\xff\xff\xff")


def corpus(name: str) -> list[bytes]:
    """The kept inputs of a target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """One to eight changes to a seed: bits, bytes, numbers, cuts, repeats, another seed's part."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 2, 4, 32, 500)))
        match chance.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at:end] = chance.randbytes(end - at)
            case 2:
                number = chance.choice(_NUMBERS)
                data[at : at + len(number)] = number
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end]
            case 5:
                other = chance.choice(seeds)
                start = chance.randrange(len(other) + 1)
                data[at:end] = other[start : start + 64]
            case _:
                del data[at:]
    return bytes(data)


@contextmanager
def _alarm() -> Iterator[None]:
    def hangs(number: int, frame: object) -> None:
        raise TimeoutError(f"no answer within {_HANGS_AFTER} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(_HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(name: str, data: bytes) -> None:
    """Run one input.

    Raises:
        AssertionError: something else than a value or a documented error came out.
    """
    said = ""
    try:
        with _alarm():
            TARGETS[name](data)
    except Error as error:
        said = str(error)
    except BaseException as error:
        raise AssertionError(f"{name}: {type(error).__name__}: {error!s:.200}; input: {data[:4096].hex()}") from error
    assert len(said) < 4096, f"{name}: an error of {len(said)} characters"


def run(name: str, *, seconds: float = SECONDS, seed: int = 1) -> int:
    """Replay the corpus, then mutate until the time is over; the number of inputs."""
    seeds = corpus(name)
    for data in seeds:
        check(name, data)
    chance, count, end = random.Random(seed), len(seeds), time.monotonic() + seconds
    while time.monotonic() < end:
        check(name, mutated(seeds, chance))
        count += 1
    return count
