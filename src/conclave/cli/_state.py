"""`conclave state`: what lies on a host's state store, without any key.

Runs at an operator, while no host has the store.

Spec: spec/stores.md section 5 (STORE-27).
"""

from __future__ import annotations

import asyncio
import json as _json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cyclopts import App

from conclave.cli._terminal import safe
from conclave.errors import FormatError, StoreDamaged

if TYPE_CHECKING:
    from conclave._stateheader import BootHeader
    from conclave.host.states.kept import KeptState
    from conclave.host.states.survey import Survey

Value = TypeVar("Value")
DAMAGED: Final = 30
_KINDS: Final = ("file:", "sqlite:", "s3:", "postgresql:", "postgres:")
_CONSENT: Final = (
    "From the enclave's next start on, clients that knew this state get LogReplaced, "
    "and go on only if their owners consent."
)

state = App(name="state", help="Stored state of an enclave, as its operator sees it: sizes and versions, no contents.")


@state.command
def inspect(store: str, *, json: bool = False) -> int:
    """Say what lies there: newest version, records, boots, snapshot, posted mail.

    Example: conclave state inspect file:/var/lib/hello

    Args:
        store: URL that the host was given as --store, or a bundle, for the store that `conclave serve` uses by itself.
        json: print one JSON object.
    """
    found = _opened(store, _survey)
    _say(_facts(found), _lines(found), as_json=json)
    return 0


@state.command
def verify(store: str, *, json: bool = False) -> int:
    """Check everything that needs no key: order, sizes, chains of headers. Exit status 30: it does not fit together.

    Whether it is authentic, and the newest that there was, only the enclave and its clients can tell.
    Example: conclave state verify file:/var/lib/hello

    Args:
        store: URL that the host was given as --store, or a bundle, for the store that `conclave serve` uses by itself.
        json: print one JSON object.
    """
    try:
        found = _opened(store, _survey)
    except StoreDamaged as error:
        advice = "bring back what is missing; a backup older than what clients have seen stops the enclave"
        told = {"whole": False, "code": error.code, "message": str(error)}
        _say(told, [f"damaged     {error}", f"            {advice}"], as_json=json)
        return DAMAGED
    _say(
        {"whole": True, **_facts(found)}, ["whole       what needs no key fits together", *_lines(found)], as_json=json
    )
    return 0


@state.command
def compact(store: str, *, json: bool = False) -> int:
    """Delete records and snapshots that a newer complete snapshot stands for.

    A running host does so by itself.
    Example: conclave state compact file:/var/lib/hello

    Args:
        store: URL that the host was given as --store, or a bundle, for the store that `conclave serve` uses by itself.
        json: print one JSON object.
    """

    async def work(kept: KeptState) -> tuple[int, str]:
        # What does not fit together is left as it is.
        await _survey(kept)
        before = await kept.occupied()
        await kept.states.forget()
        return before - await kept.occupied(), kept.unit

    freed, unit = _opened(store, work)
    line = (
        f"deleted {freed} {unit}" if freed else "nothing to delete: no snapshot stands for anything that is still there"
    )
    _say({"freed": freed, "unit": unit}, [line], as_json=json)
    return 0


@state.command
def reset(store: str, *, yes: bool = False, json: bool = False) -> int:
    """Move the state aside, so that the enclave begins a new log. Deletes nothing.

    Its clients get LogReplaced, and go on only if their owners consent.
    Example: conclave state reset file:/var/lib/hello

    Args:
        store: URL that the host was given as --store, or a bundle, for the store that `conclave serve` uses by itself.
        yes: do not ask.
        json: print one JSON object.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise FormatError("this begins a new log, and nobody is at a terminal to confirm it; add --yes")
        print(f"This moves the state in {store} aside, and the enclave begins with nothing. {_CONSENT}")
        if input("Type `reset` to go on: ").strip() != "reset":
            print("nothing was changed")
            return 1
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    where = _opened(store, lambda kept: kept.move_aside(stamp))
    _say({"moved_to": where}, [f"moved aside to {where}; nothing was deleted", _CONSENT], as_json=json)
    return 0


def _opened(store: str, work: Callable[[KeptState], Awaitable[Value]]) -> Value:
    from conclave.host.states.kept import kept_state

    async def main() -> Value:
        async with kept_state(_url(store)) as kept:
            return await work(kept)

    return asyncio.run(main())


def _url(store: str) -> str:
    """A store's URL, or the default one of a bundle."""
    from conclave.bundle import read_bundle
    from conclave.cli._places import outbox_store

    if store.startswith(_KINDS):
        return store
    if Path(store).is_dir():
        raise FormatError(f"{safe(store)} is a directory, and no bundle; a store is named file:{safe(store)}")
    return outbox_store(read_bundle(Path(store)).code)


async def _survey(kept: KeptState) -> Survey:
    from conclave.host.states.survey import survey

    return await survey(kept.states)


def _say(facts: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    print(_json.dumps(facts) if as_json else "\n".join(lines))


def _facts(found: Survey) -> dict[str, Any]:
    snapshot = found.snapshot
    return {
        "log_id": found.log_id.hex(),
        "version": found.version,
        "records": found.records,
        "bytes": found.size,
        "digest": None if found.digest is None else found.digest.hex(),
        "boots": [{"version": version, **_boot(boot)} for version, boot in found.boots],
        "snapshot": None
        if snapshot is None
        else {
            "version": snapshot.version,
            "snapshot_id": snapshot.snapshot_id.hex(),
            "chunks": snapshot.chunks,
            "bytes": snapshot.size,
            "boot": _boot(snapshot.boot),
        },
        "posting_records": found.posting,
        "posted_mails": found.mails,
    }


def _boot(boot: BootHeader) -> dict[str, Any]:
    return {"boot_id": boot.boot_id.hex(), "bundle_id": boot.bundle_id.hex(), "level": boot.level}


def _lines(found: Survey) -> list[str]:
    snapshot = found.snapshot
    lines = [
        f"log         {found.log_id.hex()}",
        f"version     {found.version}",
        f"records     {found.records}, {found.size} bytes" + (" since the snapshot" if snapshot else ""),
    ]
    if found.digest is not None:
        lines.append(f"digest      {found.digest.hex()}")
    if snapshot is not None:
        lines.append(f"snapshot    of version {snapshot.version}, {snapshot.chunks} chunks, {snapshot.size} bytes")
        lines.append(f"            made by boot {_boot_text(snapshot.boot)}")
    lines += [f"boot        {_boot_text(boot)}, from version {version} on" for version, boot in found.boots]
    lines.append(f"mail        {found.mails} posted by {found.posting} records")
    return lines


def _boot_text(boot: BootHeader) -> str:
    return f"{boot.boot_id.hex()} of bundle {boot.bundle_id.hex()[:16]}…, level {boot.level}"
