"""The rules of detection, and a switch for each of them.

A record is named by the way that leads to it: a capital letter for a record that
begins a boot, a dot for any other. `A..B.` is the record of version 4; boot `A`
made versions 0 to 2, boot `A..B` began from there. So the history of a record is
the list of its prefixes, its version the length of its name less one, and another
first letter is another log. These names are the model's bird's-eye view: what the
rules below read of them is boot and version, which is what a context says.

Spec: spec/state-detection.md.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

# What a change record is named: `:` is a second one of the same version, which only a broken rule makes;
# digits are those of one identity, for the rule of the paper.
CHANGES = ".:0123456789"

Check = Literal["boots", "boots without ranges", "own boot", "own boot or unknown", "versions", "equality"]


class Rules(NamedTuple):
    """What enclave, client and honest host do. The defaults are the protocol; everything else breaks it.

    Attributes:
        check: how an enclave decides whether a context is in its history.
        fresh_boots: each boot draws an id; otherwise two that began at one version share theirs.
        one_record_a_version: what was sealed stays; otherwise what a store refused is undone and made again.
        halt_lasts: a halted boot never serves again; otherwise it refuses the one mail.
        contexts_are_keyed: what no boot gave to this identity is the sender's error alone.
        own_record: an answer carries the context of the record that holds its effects; otherwise of the one before.
        posts: posted mail carries a context.
        held: what a client keeps: the newest context of each boot, or one in all.
        pinned: a client that knows a log speaks to no other.
        gate: an honest host gives nothing out before the record is durable.
    """

    check: Check = "boots"
    fresh_boots: bool = True
    one_record_a_version: bool = True
    halt_lasts: bool = True
    contexts_are_keyed: bool = True
    own_record: bool = True
    posts: bool = True
    held: Literal["of each boot", "highest version", "last received"] = "of each boot"
    pinned: bool = True
    gate: bool = True


PROTOCOL = Rules()


@cache
def boot_of(record: str) -> str:
    """The boot that made a record, by its first record."""
    return record.rstrip(CHANGES)


def version_of(record: str) -> int:
    """From 0."""
    return len(record) - 1


@cache
def table_of(head: str, fresh_boots: bool = True) -> dict[str, int]:
    """The table of boots that is kept with the state: boot id and first version, oldest first."""
    begins = [at for at, letter in enumerate(head) if letter not in CHANGES]
    return {head[: at + 1] if fresh_boots else str(at): at for at in begins}


@cache
def contains(head: str, context: str, check: Check = "boots", fresh_boots: bool = True) -> bool:
    """Whether a boot whose newest record is `head` takes a context for part of its history."""
    table, version = table_of(head, fresh_boots), version_of(context)
    boot = boot_of(context) if fresh_boots else str(version_of(boot_of(context)))
    if check == "versions":
        return version <= version_of(head)
    if check == "own boot":
        return boot == list(table)[-1] and version <= version_of(head)
    if check == "own boot or unknown":
        return boot != list(table)[-1] or version <= version_of(head)
    if boot not in table:
        return False
    if check == "boots without ranges":
        return version <= version_of(head)
    later = [first for first in table.values() if first > table[boot]]
    return table[boot] <= version < min(later, default=version_of(head) + 1)


@cache
def given_last(head: str, identity: str) -> tuple[str, str]:
    """The rule of the paper: the last context given to an identity and the one before, for its retry."""
    given = ["", "", *(head[: at + 1] for at, letter in enumerate(head) if letter == identity)]
    return given[-2], given[-1]


@cache
def shown(held: tuple[str, ...], boot: str) -> str:
    """Which context a client's mail to a boot carries; empty for none.

    One of another boot before one of this boot: only what others gave can prove
    anything. Of several, the one of the highest version.
    """
    others = [context for context in held if boot_of(context) != boot]
    return max(others or held, key=lambda context: (len(context), context), default="")


@cache
def keep(held: tuple[str, ...], received: str, carried: str, rule: str = "of each boot") -> tuple[str, ...]:
    """What a client holds once it received a context in answer to a mail that carried another.

    The answer of one boot to the context of another says that this is in its history.
    """
    if rule == "last received":
        return (received,)
    if rule == "highest version":
        return (max(*held, received, key=len),) if held else (received,)
    boot, shown_boot = boot_of(received), boot_of(carried)
    kept = {boot: received}
    for context in held:
        of = boot_of(context)
        proved = of == shown_boot != boot and len(context) <= len(carried)
        if not proved and len(context) > len(kept.get(of, "")):
            kept[of] = context
    return tuple(sorted(kept.values()))


@cache
def newest(records: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are in the history of none of the others."""
    every = set(records)
    return tuple(sorted(r for r in every if not any(o != r and o.startswith(r) for o in every)))
