"""The world of the proof: enclaves, clients, and a host that does what it likes, one step at a time.

A step is what the host does next, as it alone decides what happens when: it starts
a boot from any state it ever got, lets a client's mail through to any running boot,
gives an answer or posted mail to a client. What it never does it drops; what it does
later it delays.

Spec: spec/state-detection.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from proof.protocol import PROTOCOL, Rules, boot_of, contains, given_last, keep, newest, shown
from proof.state import STATEMENT, Boot, Client, Flight, State, Step

# A context that no boot gave.
FORGED = "Z........."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXY"


class Violation(Exception):
    """A property does not hold. Its name is the first argument."""


@cache
def records(tips: tuple[str, ...]) -> tuple[str, ...]:
    """All there are."""
    return tuple(sorted({tip[:size] for tip in tips for size in range(1, len(tip) + 1)}))


@cache
def starts(tips: tuple[str, ...], boots: int, forks: int) -> tuple[tuple[Step, int], ...]:
    """Every state from which a boot can be started, in every place."""
    places = [*range(boots), *([-1] if boots < forks else [])]
    return tuple((Step("start", boot=place, record=record), 1) for record in ("", *records(tips)) for place in places)


@cache
def successor(tips: tuple[str, ...], record: str) -> str:
    """The first record of the next boot that is started from there."""
    return next(record + x for x in LETTERS if not any(tip.startswith(record + x) for tip in tips))


class World(NamedTuple):
    """Who takes part, and under which rules."""

    rules: Rules = PROTOCOL
    clients: int = 3
    forks: int = 2
    in_flight: int = 1
    posts: bool = False
    backups: bool = False
    hostile_client: bool = False
    asks: bool = False
    # Client i acts under identity i, or under those named here: then records say whose they are.
    identities: str = ""
    # Properties that are not looked at, to see what comes of it.
    unwatched: str = ""

    def begin(self) -> State:
        """One boot that began a log, and clients that know nothing."""
        return State(clients=(Client(),) * self.clients)

    # Which steps there are ------------------------------------------------------------

    def steps(self, state: State, *, start: bool = True) -> Iterator[tuple[Step, int]]:
        """What the host can do next, and how many ways of doing it differ in nothing but which client it is.

        Args:
            start: also starts of boots, which can violate nothing.
        """
        clients = state.clients
        for c, client in enumerate(clients):
            if client.stopped or (not self.identities and client in clients[:c]):
                continue
            same = 1 if self.identities else clients.count(client)
            for b, boot in enumerate(state.boots):
                yield Step("mail", c, b), same
                if self.asks and not self._again(client, boot_of(boot.head)):
                    yield Step("ask", c, b), same
            for f in range(len(client.flights)):
                yield Step("answer", c, f), same
            if self.posts:
                for record in records(state.tips):
                    if record[-1] == "." and record[0] == client.log and record not in client.held:
                        yield Step("post", c, record=record), same
            if self.backups and client.saved != (client.log, client.held, client.told):
                yield Step("backup", c), same
                if client.saved:
                    yield Step("restore", c), same
        for b, boot in enumerate(state.boots):
            if self.hostile_client:
                yield Step("forge", boot=b), 1
            if not self.rules.one_record_a_version and boot.head[-1] == ".":
                yield Step("refuse", boot=b), 1
        if start:
            yield from starts(state.tips, len(state.boots), self.forks)

    # What they do ----------------------------------------------------------------------

    def after(self, state: State, step: Step) -> State:
        """The state after a step. Raises Violation."""
        match step.name:
            case "mail" | "ask":
                return self._mail(state, step)
            case "answer":
                return self._answer(state, step)
            case "post":
                return self._post(state, step)
            case "start":
                return self._start(state, step)
            case "forge":
                return self._forge(state, step)
            case "refuse":
                return self._refuse(state, step)
            case "backup" | "restore":
                return self._copy(state, step)

    def _start(self, state: State, step: Step) -> State:
        head = successor(state.tips, step.record)
        boots = [boot for b, boot in enumerate(state.boots) if b != step.boot]
        boots.append(Boot(head))
        boots.sort()
        kept = step.record if state.kept is not None and step.record.startswith(state.kept) else None
        return State(newest((*state.tips, head)), tuple(boots), state.clients, kept, state.caught)

    def _mail(self, state: State, step: Step) -> State:
        client, (head, halted) = state.clients[step.client], state.boots[step.boot]
        boot = boot_of(head)
        # Its client has the instance info, which came after the boot's first record. Once a later boot's came
        # out, an honest host has ended this one: no boot can tell a successor from a fork.
        kept = self._gave_out(state.kept, boot)
        if self.rules.gate and kept is not None and boot_of(kept) != boot:
            kept = None
        if not client.log or not self.rules.pinned:
            client = client._replace(log=head[0])
        if client.log != head[0]:
            # LogReplaced: its mail never leaves.
            return self._alarm(state._replace(kept=kept), step.client, client)
        again = self._again(client, boot)
        flights = client.flights if client.flights and client.flights[0].boot == boot else ()
        # Without a pinned log, of each log those that are its own.
        held = tuple([context for context in client.held if context[0] == boot[0]])
        carried = flights[0].carried if again else shown(held, boot)
        lacks = not all(head.startswith(record) for record in client.told)
        contained = self._contains(head, carried, step.client)
        caught = state.caught
        boots, tips = state.boots, state.tips
        record = context = STATEMENT
        serves = not halted or not self.rules.halt_lasts
        if not contained and serves:
            if kept is not None or not lacks:
                self._violated("S", "an enclave halts without cause")
            halted, caught = True, caught or "enclave"
            boots = self._with(boots, step.boot, Boot(head, halted=True))
        elif serves:
            if halted:
                self._violated("L", "a halted boot serves")
            if lacks and not again and not self._comes_later(client, boot):
                self._violated("D", "an enclave serves a client that was told of what its history lacks")
            before, record = head, head
            if step.name == "mail" and not again:
                record = self._seal(head, tips, step.client)
                boots, tips = self._with(boots, step.boot, Boot(record, halted)), newest((*tips, record))
            context = record if self.rules.own_record else before
        flight = Flight(boot, record, context, carried)
        flights = (flight, *flights[1:]) if again else tuple(sorted((*flights, flight)))
        clients = self._with(state.clients, step.client, client._replace(flights=flights))
        return State(tips, boots, clients, kept, caught)

    def _again(self, client: Client, boot: str) -> bool:
        """Whether its next mail to a boot is one that it sent there already."""
        return len(client.flights) == self.in_flight and client.flights[0].boot == boot

    def _contains(self, head: str, carried: str, client: int) -> bool:
        if self.rules.check == "equality":
            return carried in given_last(head, self.identities[client])
        return not carried or contains(head, carried, self.rules.check, self.rules.fresh_boots)

    def _comes_later(self, client: Client, boot: str) -> bool:
        """Whether what proves it is held, but another context went first."""
        others = [context for context in client.held if boot_of(context) != boot]
        return len(others) > 1

    def _seal(self, head: str, tips: tuple[str, ...], client: int) -> str:
        record = head + (self.identities[client] if self.identities else ".")
        if any(tip.startswith(record) for tip in tips):
            self._violated("N", "a boot makes two records of one version")
        return record

    def _refuse(self, state: State, step: Step) -> State:
        # The batch is handled once more, with another outcome.
        record = state.boots[step.boot].head[:-1] + ":"
        self._violated("N", "a boot makes two records of one version")
        return state._replace(
            tips=newest((*state.tips, record)), boots=self._with(state.boots, step.boot, Boot(record))
        )

    def _answer(self, state: State, step: Step) -> State:
        client = state.clients[step.client]
        flight = client.flights[step.boot]
        client = client._replace(flights=client.flights[: step.boot] + client.flights[step.boot + 1 :])
        if flight.record == STATEMENT:
            return self._alarm(state, step.client, client)
        return self._told(state, step.client, client, flight)

    def _post(self, state: State, step: Step) -> State:
        client = state.clients[step.client]
        context = step.record if self.rules.posts else ""
        return self._told(state, step.client, client, Flight("", step.record, context, ""))

    def _told(self, state: State, c: int, client: Client, flight: Flight) -> State:
        state = state._replace(kept=self._gave_out(state.kept, flight.record))
        context, carried = flight.context, flight.carried
        if context:
            strange = any(len(h) == len(context) and h != context for h in client.held)
            if strange or len(context) < len(carried):
                return self._alarm(state, c, client)
            client = client._replace(held=keep(client.held, context, carried, self.rules.held))
        client = client._replace(told=newest((*client.told, flight.record)))
        if self.rules is PROTOCOL and not all(any(h.startswith(r) for h in client.held) for r in client.told):
            self._violated("H", "a client holds no proof of what it was told of")
        return state._replace(clients=self._with(state.clients, c, client))

    def _gave_out(self, kept: str | None, record: str) -> str | None:
        """What an honest host has to have kept once it gave out what came after a record; None if none can."""
        if kept is None or not self.rules.gate or kept.startswith(record):
            return kept
        return record if record.startswith(kept) else None

    def _alarm(self, state: State, c: int, client: Client) -> State:
        if state.kept is not None:
            self._violated("C", "a client raises an alarm though the host is honest")
        clients = self._with(state.clients, c, client._replace(stopped=True, flights=()))
        return state._replace(clients=clients, caught=state.caught or "client")

    def _forge(self, state: State, step: Step) -> State:
        head, halted = state.boots[step.boot]
        if self.rules.contexts_are_keyed or halted or contains(head, FORGED, self.rules.check):
            return state
        self._violated("S", "an enclave halts without cause")
        return state

    def _copy(self, state: State, step: Step) -> State:
        client = state.clients[step.client]
        if step.name == "backup":
            client = client._replace(saved=(client.log, client.held, client.told))
        else:
            log, held, told = client.saved or ("", (), ())
            forgot = newest((*client.forgot, *client.told))
            client = client._replace(log=log, held=held, told=told, flights=(), forgot=forgot)
        return state._replace(clients=self._with(state.clients, step.client, client))

    def _violated(self, name: str, text: str) -> None:
        if name not in self.unwatched:
            raise Violation(name, text)

    @staticmethod
    def _with(items: tuple, at: int, item: object) -> tuple:  # type: ignore[type-arg]
        return (*items[:at], item, *items[at + 1 :])
