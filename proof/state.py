"""What a state of the world consists of, and the steps between states.

Beside what the parties know, a state holds what only the proof knows: which records a
client was really told of, and whether the host has been honest so far. The properties
compare the two.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# In place of a record: the signed statement of a halted boot.
STATEMENT = "!"


class Flight(NamedTuple):
    """A mail that was handled, and its answer, which the host has.

    Attributes:
        record: the newest record when it was answered; or `STATEMENT`.
        context: what the answer carries.
        carried: what the mail carried.
    """

    boot: str
    record: str
    context: str
    carried: str


class Client(NamedTuple):
    """A client, or one device of an identity that has several.

    Attributes:
        log: the log of the first boot that it verified, by its first letter.
        held: contexts it holds.
        told: newest records it was told of. The proof's knowledge.
        flights: its mails in flight, all to one boot: a session with another ends those before.
        stopped: it raised RollbackError or LogReplaced, and its owner has not consented to go on.
        saved: a backup: its log, what it held and was told of at that time; empty for none.
        forgot: records that it was told of after the backup it was restored from. The proof's knowledge.
    """

    log: str = ""
    held: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    flights: tuple[Flight, ...] = ()
    stopped: bool = False
    saved: tuple[str, tuple[str, ...], tuple[str, ...]] | tuple[()] = ()
    forgot: tuple[str, ...] = ()


class Boot(NamedTuple):
    """A running boot, by its newest record."""

    head: str
    halted: bool = False


class State(NamedTuple):
    """Everything.

    Attributes:
        tips: records that none follows. Every prefix of one is a state that the host can restore.
        kept: the newest record that an honest host had to make durable; None once it was not honest.
        caught: who noticed first: nobody, an enclave, or a client by itself.
    """

    tips: tuple[str, ...] = ("A",)
    boots: tuple[Boot, ...] = (Boot("A"),)
    clients: tuple[Client, ...] = ()
    kept: str | None = ""
    caught: Literal["", "enclave", "client"] = ""


class Step(NamedTuple):
    """What the host does.

    `start`: a boot from `record` (empty: from an empty store) in place of running boot `boot`, or beside (-1).
    `mail`: lets the next mail of `client` through to running boot `boot`, or the same bytes once more if as many
    as may be are in flight there; `ask` makes no record. `answer`: gives `client` the answer of flight `boot`.
    `post`: gives it the mail that was posted with `record`. `backup`, `restore`: the client's own. `forge`: a hostile
    client's mail, with a context of its own making. `refuse`: claims that the store refused the newest record.
    """

    name: Literal["start", "mail", "ask", "answer", "post", "backup", "restore", "forge", "refuse"]
    client: int = -1
    boot: int = -1
    record: str = ""
