"""`conclave endorsements`: what a host staples, carried to machines without a network."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conclave.attestation import parse_instance_info
from conclave.cli._places import endorsements_directory
from conclave.errors import Error, FormatError, PlatformError
from conclave.host.endorsements import AmdService, Endorsements, IntelService
from conclave.host.endorsements.cache import Cache
from conclave.host.endorsements.documents import Document
from conclave.host.endorsements.exchange import read_folder, write_folder
from conclave.host.endorsements.platform import KINDS, Platform, read_platform


@dataclass(frozen=True, slots=True)
class Services:
    """Where to fetch from, as given on the command line."""

    intel: str | None = None
    intel_root_crl: str | None = None
    amd: str | None = None
    ca_file: Path | None = None
    evaluation: str = "standard"
    product: str | None = None
    revocation_lists: bool = True
    certificates: tuple[Path, ...] = ()


def export_command(
    directory: Path, evidence: tuple[Path, ...], *, cache: Path | None, services: Services, as_json: bool
) -> int:
    """Write what is cached, or what some platforms need, fetched if there is an address."""
    now = datetime.now(UTC)
    place = endorsements_directory(cache)
    if evidence:
        platforms = [_platform(path) for path in evidence]
        found = asyncio.run(_collect(place, platforms, services))
    else:
        found = [d for d in Cache(place, warn=_warn).documents() if now <= d.window.valid_until]
    if not found:
        raise PlatformError(
            f"there is nothing to export in {place}; name evidence and where to fetch from", code="endorsements-missing"
        )
    end = write_folder(found, directory, now=now)
    facts = {"directory": str(directory), "valid_until": _text(end), "documents": [_describe(d, now) for d in found]}
    _say(facts, f"exported {len(found)} documents to {directory}, all valid until {_text(end)}", as_json)
    return 0


async def _collect(place: Path, platforms: Iterable[Platform], services: Services) -> list[Document]:
    intel = amd = None
    if services.intel is not None:
        intel = IntelService(services.intel, root_crl_url=services.intel_root_crl, ca_file=services.ca_file)
    if services.amd is not None:
        amd = AmdService(services.amd, ca_file=services.ca_file)
    source = Endorsements(
        place,
        intel=intel,
        amd=amd,
        evaluation=services.evaluation,
        product=services.product,
        revocation_lists=services.revocation_lists,
        on_event=lambda event: _warn(str(event.get("text"))),
    )
    try:
        for path in services.certificates:
            await source.offer(path.read_bytes())
        found: dict[str, Document] = {}
        for platform in platforms:
            found |= await source.documents(platform)
    finally:
        await source.close()
    return [found[name] for name in sorted(found)]


def import_command(directory: Path, *, cache: Path | None, as_json: bool) -> int:
    """Check a folder and put it into the cache, all or nothing."""
    now = datetime.now(UTC)
    found = read_folder(directory, now=now)
    place = Cache(endorsements_directory(cache), warn=_warn)
    newer = [d for d in found if not _is_older(d, place.load(d.wanted))]
    place.store(*newer)
    facts = {
        "imported": [_describe(d, now) for d in newer],
        "kept": sorted(d.wanted.name for d in found if d not in newer),
    }
    kept = f"; {len(found) - len(newer)} here are as new or newer" if len(newer) < len(found) else ""
    _say(facts, f"imported {len(newer)} documents{kept}", as_json)
    return 0


def _is_older(document: Document, here: Document | None) -> bool:
    return here is not None and here.window.issued >= document.window.issued


def list_command(*, cache: Path | None, as_json: bool) -> int:
    """Say what is cached."""
    now = datetime.now(UTC)
    place = endorsements_directory(cache)
    found = [_describe(d, now) for d in Cache(place, warn=_warn).documents()]
    if as_json:
        print(json.dumps({"cache": str(place), "documents": found}))
        return 0
    print(f"{len(found)} documents in {place}")
    for each in found:
        print(f"  {each['name']:<48} {'valid until' if each['valid'] else 'EXPIRED    '} {each['valid_until']}")
    return 0


def _platform(path: Path) -> Platform:
    """The platform of a file with evidence: a quote, a report, or instance info."""
    data = path.read_bytes()
    try:
        info = parse_instance_info(data)
        return read_platform(info.evidence, info.format)
    except FormatError:
        pass
    refused: Error | None = None
    for kind in KINDS:
        try:
            if kind != "nitro":
                return read_platform(data, kind)
        except FormatError as error:
            # The best reason is that of the kind it is.
            if refused is None or error.code not in ("quote-format", "report-format"):
                refused = error
    raise refused or FormatError(f"{path} holds no evidence")


def _describe(document: Document, now: datetime) -> dict[str, Any]:
    window = document.window
    return {
        "name": document.wanted.name,
        "fetched": _text(document.fetched),
        "issued": _text(window.issued),
        "valid_until": _text(window.valid_until),
        "valid": window.issued <= now <= window.valid_until,
    }


def _say(facts: dict[str, Any], line: str, as_json: bool) -> None:
    print(json.dumps(facts) if as_json else line)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
