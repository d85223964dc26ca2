"""What a workload gets: clients of an enclave whose host is hostile, and what became of their calls.

For tests. The clients are ordinary ones, each with an identity, saved state and
the constraint that accepts exactly the enclave that is attacked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar

from conclave._crypto import SigningKey, sha256
from conclave.client import Client, Identity, ReceivedMail
from conclave.errors import CallError, Error
from conclave.testing.attack.run import Line

P = ParamSpec("P")
T = TypeVar("T")
_TIMEOUT_SECONDS: Final = 3.0
_ATTEMPTS: Final = 4
_SHOWN: Final = 160
_MOST_BYTES: Final = 24


def attack_identity(name: str) -> Identity:
    """Who `Attack.client(name)` is: the same in every run, so that a roster can list its `public` key.

    INSECURE for anything but tests: whoever knows the name has the key.
    """
    return Identity(SigningKey(sha256(b"conclave attack identity " + name.encode())))


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What a client knows of something it tried.

    Attributes:
        value: the result, if it was confirmed.
        error: why there is none.
    """

    value: T | None = None
    error: Error | None = None

    @property
    def confirmed(self) -> bool:
        """The enclave answered: it was done."""
        return self.error is None

    @property
    def refused(self) -> bool:
        """The enclave answered: its code refused or failed. What that had changed before is the author's to say."""
        return isinstance(self.error, CallError)

    @property
    def unknown(self) -> bool:
        """There is no answer, or the client broke off: it may have been done, and may still be done later."""
        return not (self.confirmed or self.refused)


class History(Protocol):
    """What became of the enclave so far; see `Fleet`."""

    @property
    def continuous(self) -> bool: ...
    @property
    def linear(self) -> bool: ...


class Attack:
    """One run, as its workload sees it.

    Attributes:
        url: where the hostile host serves; each client has an address below it.
        constraint: accepts exactly the enclave that is attacked.
    """

    def __init__(
        self,
        url: str,
        constraint: str,
        place: Path,
        *,
        story: list[Line],
        turn: Callable[[], int],
        behave: Callable[[], None],
        fleet: History,
    ) -> None:
        """For `conclave.testing`.

        Args:
            place: a directory for the clients' saved state.
            fleet: what became of the enclave so far.
        """
        self.url = url
        self.constraint = constraint
        self._place = place
        self._story = story
        self._turn = turn
        self._behave = behave
        self._fleet = fleet
        self._clients: dict[str, WatchedClient] = {}
        self.secrets: set[bytes] = set()

    def client(self, name: str, **options: Any) -> Client:
        """The client of that name; after it was closed another one, with the same identity and saved state.

        Args:
            name: letters, digits, `-` and `_`.
            options: as of `Client`, in place of what is usual here: few attempts, and short time-outs.
        """
        if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            raise ValueError("the name of a client has letters, digits, - and _ only")
        known = self._clients.get(name)
        if known is not None and not known.closed:
            return known
        settings: dict[str, Any] = {
            "constraint": self.constraint,
            "identity": attack_identity(name),
            "state": self._place / f"{name}.state",
            "timeout_seconds": _TIMEOUT_SECONDS,
            "attempts": _ATTEMPTS,
            **options,
        }
        made = WatchedClient(f"{self.url}/{name}", **settings)
        made.tell = lambda text: self.note(text, client=name)
        self._clients[name] = made
        return made

    def attempt(self, act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Outcome[T]:
        """Do something with a client, and say what is known of it: `attempt(alice.call, "deposit", 10)`.

        Errors of the library are outcomes; all others are raised.
        """
        try:
            return Outcome(act(*args, **kwargs))
        except Error as error:
            return Outcome(error=error)

    def together(self, *acts: Callable[[], T]) -> list[Outcome[T]]:
        """Attempt several things at the same time, in threads; their outcomes in order.

        A request can only be overtaken by another one that is under way.
        """
        found: dict[int, Outcome[T] | BaseException] = {}

        def work(number: int, act: Callable[[], T]) -> None:
            try:
                found[number] = self.attempt(act)
            except BaseException as error:
                found[number] = error

        threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(acts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        outcomes = []
        for number in range(len(acts)):
            outcome = found[number]
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    def behave(self) -> None:
        """From here on the operator is honest: nothing more is done, and one enclave answers everybody."""
        self._behave()

    def secret(self, *values: str | bytes) -> None:
        """Demand that these never reach the operator: not in mail, answers or store. At least 8 bytes each."""
        for value in values:
            raw = value.encode() if isinstance(value, str) else bytes(value)
            if len(raw) < 8:
                raise ValueError("what has fewer than 8 bytes is found anywhere by chance")
            self.secrets.add(raw)

    def note(self, text: str, *, client: str = "") -> None:
        """Write a line into the report."""
        self._story.append(Line(self._turn(), client, text))

    @property
    def continuous(self) -> bool:
        """Whether one and the same boot has answered everybody so far: no restart, no fork, no other program."""
        return self._fleet.continuous

    @property
    def linear(self) -> bool:
        """Whether every boot went on with all that the one before had stored: no roll back, no fork."""
        return self._fleet.linear

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients.values():
            client.close()


class WatchedClient(Client):
    """A client that says what it was told."""

    tell: Callable[[str], None] = staticmethod(lambda text: None)

    @property
    def closed(self) -> bool:
        """Whether it can no longer be used."""
        return self._closed

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """See Client."""
        shown = ", ".join(map(_shown, args))
        return self._watched(f"{method}({shown})", lambda: super(WatchedClient, self).call(method, *args, **options))

    def mail(self, body: bytes, **options: Any) -> list[ReceivedMail]:
        """See Client."""
        return self._watched(f"mail({_shown(body)})", lambda: super(WatchedClient, self).mail(body, **options))

    def poll(self, **options: Any) -> list[ReceivedMail]:
        """See Client."""
        return self._watched("poll()", lambda: super(WatchedClient, self).poll(**options))

    def _watched(self, what: str, act: Callable[[], T]) -> T:
        try:
            value = act()
        except CallError as error:
            self.tell(f"{_short(what)}: refused: {error.type_name}: {error}")
            raise
        except Error as error:
            self.tell(f"{_short(what)}: {type(error).__name__}: {' '.join(str(error).split())}")
            raise
        self.tell(f"{_short(what)}: {_short(_shown(value))}")
        return value


def _shown(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _MOST_BYTES:
        return f"<{len(value)} bytes {value[:4].hex()}…>"
    return repr(value)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
