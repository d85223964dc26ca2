"""`conclave tcb`: TCB recovery, played on simulated machines, and rehearsed for any.

`rehearse` runs at an operator or a data owner; the others on the machine that is
simulated, and change only its directory.

Spec: spec/tcb.md.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App

from conclave.cli._places import platform_directory

if TYPE_CHECKING:
    from conclave.errors import FormatError
    from conclave.platform.machine import Machine
    from conclave.platform.vendor import Level, Vendor

Part = Literal["cpu", "pce", "qe"]
Status = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]

tcb = App(name="tcb", help="TCB recovery: who would lose access, rehearsed; and levels of simulated machines.")


@tcb.command
def rehearse(
    *source: str,
    constraint: list[str],
    announced: list[Path] | None = None,
    advance_to: str | None = None,
    minimum: list[str] | None = None,
    platform: Path | None = None,
    publish: str | None = None,
    part: list[Part] | None = None,
    status_of_older: Status = "OutOfDate",
    advisory: list[str] | None = None,
    at: str | None = None,
    endorsements: Path | None = None,
    reference: Path | None = None,
    publisher: str | None = None,
    json: bool = False,
) -> int:
    """Say who would lose access to which enclave, before anybody does.

    Holds every enclave against every constraint, as things are and as they will be. Nothing changes.
    Exit status 0: nobody loses access, 10: somebody does, 1: a mistake in what was given.

    Example: conclave tcb rehearse https://host.example --constraint clients.txt --announced early.json
    Time alone: conclave tcb rehearse saved.instance --constraint "C:…" --advance-to 2027-01-31
    A simulated machine: conclave tcb rehearse URL --constraint clients.txt --platform DIR --publish 2026-12-01

    Args:
        source: URLs of hosts; files with instance info; evidence, as a file or a folder as `conclave verify` takes it.
        constraint: a constraint line, or a file with one in each line; may be repeated. Of evidence alone only what a
            line says of platforms counts.
        announced: what Intel published early: the answer for TCB info or QE identity (saved by `curl -i`, or with its
            issuer chain in a file *.chain.pem beside it), or whole endorsements; may be repeated.
        advance_to: as of when to ask again, with the endorsements that hosts staple now.
        minimum: a minimum TCB version of AMD processors to come, such as snp-milan@4.0.22.213; may be repeated.
        platform: directory of a simulated machine: its endorsements as they would be published then. It counts as
            genuine hardware here, for constraints that do not accept simulated ones.
        publish: date of a new TCB level that the simulated vendor would publish.
        part: what that level is about: cpu, pce, qe; may be repeated (default: cpu).
        status_of_older: what machines below that level would be.
        advisory: id of an advisory that it is about; may be repeated.
        at: when now is: a date, or a time with its zone (default: now).
        endorsements: folder with endorsements, for evidence that comes without.
        reference: signed file of reference values.
        publisher: SHA-256 (hex) of the public key that signed it.
        json: print one JSON object (spec/tcb-rehearsal.schema.json).
    """
    from conclave.cli._rehearse import Coming, Given, rehearse_command

    plan = None
    if publish is not None:
        plan = _plan(publish, part, status_of_older, advisory)
    elif part or advisory or status_of_older != "OutOfDate":
        raise _misuse("--part, --status-of-older and --advisory say what --publish would publish: give that too")
    if plan is not None and platform is None:
        raise _misuse("--publish is for a simulated machine: name its directory with --platform")
    now = datetime.now(UTC) if at is None else parse_time("--at", at)
    given = Given(source, tuple(constraint), now, endorsements, reference, publisher)
    coming = Coming(
        announced=tuple(announced or ()),
        advance_to=None if advance_to is None else parse_time("--advance-to", advance_to),
        minimums=tuple(minimum or ()),
        platform=platform,
        change=plan,
    )
    return rehearse_command(given, coming, as_json=json)


@tcb.command
def show(*, platform: Path | None = None, json: bool = False) -> None:
    """Show the TCB version of a simulated machine, and what its vendor says of it.

    Example: conclave tcb show

    Args:
        platform: directory of the simulated machine.
        json: print one JSON object.
    """
    _print(_open(platform), as_json=json)


@tcb.command
def publish(
    *,
    date: str | None = None,
    part: list[Part] | None = None,
    status_of_older: Status = "OutOfDate",
    advisory: list[str] | None = None,
    platform: Path | None = None,
    json: bool = False,
) -> None:
    """The simulated vendor publishes a new TCB level: machines below it have a reason to update.

    Running enclaves' clients see it when the host staples new endorsements: with the next renewal, or a restart.
    Example: conclave tcb publish --advisory INTEL-SA-00001

    Args:
        date: of the level: a date, or a time with its zone (default: today).
        part: what machines have to update: cpu (microcode), pce, qe; may be repeated (default: cpu).
        status_of_older: what machines below the new level are from now on.
        advisory: id of an advisory that it is about; may be repeated.
        platform: directory of the simulated machine.
        json: print one JSON object, as `show` does.
    """
    _tell(platform, _plan(date, part, status_of_older, advisory), as_json=json)


@tcb.command
def declare(
    status: Status,
    *,
    advisory: list[str] | None = None,
    platform: Path | None = None,
    json: bool = False,
) -> None:
    """The simulated vendor says something else of the machine's TCB level, with no newer one.

    Example: conclave tcb declare SWHardeningNeeded --advisory INTEL-SA-00334

    Args:
        status: what it says from now on.
        advisory: id of an advisory that it is about; may be repeated.
        platform: directory of the simulated machine.
        json: print one JSON object, as `show` does.
    """
    machine = _open(platform)
    _tell(platform, lambda vendor: vendor.declare(machine.tcb, status, advisories=advisory or ()), as_json=json)


@tcb.command
def update(*, platform: Path | None = None, json: bool = False) -> None:
    """Patch the simulated machine to its vendor's newest level; it has it from its next start on.

    What it sealed before stays readable.
    Example: conclave tcb update

    Args:
        platform: directory of the simulated machine.
        json: print one JSON object, as `show` does.
    """
    _open(platform).update()
    _print(_open(platform), as_json=json)


@tcb.command
def revoke(what: Literal["platform", "ca"] = "platform", *, platform: Path | None = None, json: bool = False) -> None:
    """The simulated vendor revokes the machine's certificates: no client talks to it any more.

    Example: conclave tcb revoke

    Args:
        what: platform: every certificate of this machine; ca: that of the authority above.
        platform: directory of the simulated machine.
        json: print one JSON object, as `show` does.
    """
    _tell(platform, lambda vendor: vendor.revoke(what), as_json=json)


@tcb.command
def expire(
    what: Literal["crl", "tcb-info", "qe-identity"], *, platform: Path | None = None, json: bool = False
) -> None:
    """Let endorsements of the simulated machine grow too old, as if nobody fetched newer ones.

    Example: conclave tcb expire crl

    Args:
        what: the revocation lists, the TCB info, or the identity of the quoting enclave.
        platform: directory of the simulated machine.
        json: print one JSON object, as `show` does.
    """
    _tell(platform, lambda vendor: vendor.expire(what), as_json=json)


@tcb.command
def restore(*, platform: Path | None = None, json: bool = False) -> None:
    """End the play: nothing is revoked or expired, and the version that the machine has is up to date.

    Example: conclave tcb restore

    Args:
        platform: directory of the simulated machine.
        json: print one JSON object, as `show` does.
    """
    machine = _open(platform)
    _tell(platform, lambda vendor: vendor.restore(machine.tcb), as_json=json)


def parse_time(option: str, text: str) -> datetime:
    """A time with its zone, or a date, which is its first moment in UTC. Raises FormatError `usage`."""
    try:
        moment = datetime.fromisoformat(text)
        if len(text) == len("2026-01-31"):
            moment = moment.replace(tzinfo=UTC)
        if moment.utcoffset() is None:
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _misuse(
            f"{option} is a date such as 2026-01-31, or a time with its zone such as 2026-01-31T12:00:00Z"
        ) from None


def _misuse(why: str) -> FormatError:
    # Every command loads this module; what it needs waits.
    from conclave.cli._files import misuse

    return misuse(why)


def _plan(
    date: str | None, part: list[Part] | None, status_of_older: str, advisory: list[str] | None
) -> Callable[[Vendor], Vendor]:
    from conclave.platform.vendor import start_of_day

    moment = start_of_day(datetime.now(UTC)) if date is None else parse_time("the date of a TCB level", date)
    return lambda vendor: vendor.publish(
        date=moment, parts=part or ("cpu",), status_of_older=status_of_older, advisories=advisory or ()
    )


def _open(platform: Path | None) -> Machine:
    from conclave.platform.machine import Machine

    return Machine.open(platform_directory(platform), create=False)


def _tell(platform: Path | None, change: Callable[[Vendor], Vendor], *, as_json: bool) -> None:
    machine = _open(platform)
    try:
        machine.tell(change)
    except ValueError as error:
        raise _misuse(str(error)) from None
    _print(machine, as_json=as_json)


def _print(machine: Machine, *, as_json: bool) -> None:
    import json

    vendor, tcb = machine.vendor, machine.tcb
    level, qe_level = vendor.level_of(tcb), vendor.qe_level_of(tcb)
    facts = {
        "anchor": machine.anchor,
        "cpu_svn": tcb.cpu_svn.hex(),
        "pce_svn": tcb.pce_svn,
        "qe_svn": tcb.qe,
        "newest": tcb == vendor.newest,
        "platform": _facts(level),
        "qe": _facts(qe_level),
        "evaluation_number": vendor.number,
        "revoked": list(vendor.revoked),
        "expired": list(vendor.expired),
        "levels": [_facts(one) for one in vendor.levels],
        "qe_levels": [_facts(one) for one in vendor.qe_levels],
    }
    if as_json:
        print(json.dumps(facts))
        return
    print(f"machine     simulated, root {machine.anchor[:16]}…")
    print(f"version     CPUSVN {facts['cpu_svn']}, PCESVN {tcb.pce_svn}, quoting enclave {tcb.qe}")
    print(f"platform    {_words(level)}")
    print(f"QE          {_words(qe_level)}")
    print(f"vendor      evaluation {vendor.number}, {len(vendor.levels)} levels, newest of {_day(vendor.levels[0])}")
    for name, found in (("revoked", vendor.revoked), ("expired", vendor.expired)):
        if found:
            print(f"{name:<12}{', '.join(found)}")
    if tcb != vendor.newest:
        print("to do       conclave tcb update, then start its enclaves again")


def _facts(level: Level) -> dict[str, Any]:
    return {
        "versions": list(level.versions),
        "date": level.date.isoformat(),
        "status": level.status,
        "advisories": list(level.advisories),
    }


def _words(level: Level) -> str:
    named = f" ({', '.join(level.advisories)})" if level.advisories else ""
    return f"{level.status}{named}, level of {_day(level)}"


def _day(level: Level) -> str:
    return level.date.date().isoformat()
