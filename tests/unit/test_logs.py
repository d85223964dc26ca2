"""What a host may write of itself, and that nothing else is written."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from conclave.host.logs import EVENTS, FIELDS, Log

SECRET = "5f1c0e9ab27d4c83"


def written(work: str, **fields: object) -> list[dict[str, object]]:
    stream = io.StringIO()
    Log("json", stream=stream).event(work, **fields)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.spec("HTTP-23")
def test_what_is_listed_is_written() -> None:
    (line,) = written("draining", connections=3, signal="SIGTERM", code="store-full", where="host.py:12")
    assert line.pop("timestamp")
    assert line == {
        "event": "draining",
        "level": "info",
        "connections": 3,
        "signal": "SIGTERM",
        "code": "store-full",
        "where": "host.py:12",
    }


@pytest.mark.spec("HTTP-23")
def test_what_is_not_listed_is_not() -> None:
    """Neither other events, nor other fields, nor other things in a field that is listed."""
    assert written(SECRET) == []
    assert written("request", code="x") == []
    for name in sorted(FIELDS | {"session", "text", "message", "client", "path", "exc_info", "stack_info"}):
        for value in (
            SECRET,
            f"word-{SECRET}",
            f"Class{SECRET}",
            f"file.py:{SECRET}",
            [SECRET],
            {"x": SECRET},
            b"x",
            True,
        ):
            (line,) = written("failed", **{name: value})
            assert line.keys() == {"event", "level", "timestamp"}, (name, value)


@pytest.mark.spec("HTTP-23")
def test_identifiers_of_any_kind_fit_no_field() -> None:
    """An id is hexadecimal: even one without a digit would have to be a word of 24 letters at most."""
    for size in (8, 16, 32):
        for name in FIELDS:
            (line,) = written("failed", **{name: bytes(range(160, 160 + size)).hex()})
            assert name not in line


@pytest.mark.spec("HTTP-23")
def test_a_failure_is_a_class_and_a_place() -> None:
    stream = io.StringIO()
    log = Log("json", stream=stream)
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        log.failure(error)
    log.failure(None)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["error"] == "ValueError"
    assert first["where"].startswith("test_logs.py:")
    assert second["error"] == "NoAnswer"
    assert SECRET not in stream.getvalue()


@pytest.mark.spec("HTTP-23")
def test_libraries_and_the_event_loop_are_heard_without_their_texts() -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level

    async def main() -> None:
        loop = asyncio.get_running_loop()
        Log("json", stream=stream).adopt(loop)
        logging.getLogger("asyncio").error("socket of %s", SECRET)
        loop.call_soon(lambda: {}[SECRET])
        await asyncio.sleep(0.01)

    try:
        asyncio.run(main())
    finally:
        root.handlers[:], root.level = before
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(e["event"], e.get("library"), e.get("error")) for e in events] == [
        ("library", "asyncio", None),
        ("failed", None, "KeyError"),
    ]
    assert SECRET not in stream.getvalue()


def test_a_platform_event_is_cut_to_what_is_listed() -> None:
    stream = io.StringIO()
    log = Log("json", stream=stream)
    log.platform(
        {"event": "launched", "mode": "release", "bundle_id": SECRET, "sandbox": "landlock", "code": SECRET * 4}
    )
    log.platform({"event": "output", "text": SECRET})
    log.platform({"event": "outbox", "code": "store-full", "text": SECRET})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["mode"], first["sandbox"]) == ("launched", "release", "landlock")
    assert first["level"] == "info"
    assert (second["code"], second["level"]) == ("store-full", "warning")
    assert SECRET not in stream.getvalue()


@pytest.mark.parametrize("kind", ["exited", "ended"])
def test_an_end_is_trouble_unless_somebody_asked_for_it(kind: str) -> None:
    stream = io.StringIO()
    log = Log("json", stream=stream)
    log.platform({"event": kind})
    log.platform({"event": kind}, stopping=True)
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == ["warning", "info"]


def test_none_is_none() -> None:
    stream = io.StringIO()
    log = Log("none", stream=stream)
    log.event("serving")
    log.trouble("failed")
    assert stream.getvalue() == ""
    assert "serving" in EVENTS
