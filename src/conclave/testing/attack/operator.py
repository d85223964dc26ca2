"""The operator of one run: stands between clients and hosts, and does what the schedule says.

For tests. It has what a real operator has: the bytes that pass, the store, the
processes, the choice of programs; no keys.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any, Final

from conclave.testing.attack.boot import Boot
from conclave.testing.attack.fleet import Fleet, times
from conclave.testing.attack.hosting import Hosting, HungUp
from conclave.testing.attack.run import Line
from conclave.testing.attack.schedule import Schedule, Step
from conclave.testing.attack.tampering import Tampering

_PASSING_SECONDS: Final = 0.3
_SILENT_SECONDS: Final = 1.0
_STALE_DAYS: Final = -60.0
_AHEAD_DAYS: Final = 400.0
_BEHIND_DAYS: Final = -3.0
_LATEST: Final = 6
# Done before a request, whatever it is; all others change one mail or one instance info.
_TO_BOOTS: Final = frozenset({"fork", "roll-back", "bundle", "store"})
_TO_INFO: Final = frozenset({"stale", "clock"})
_FRAMES: Final = {"frame": "a frame of no kind", "half-frame": "half a frame", "same-frame": "two frames of one number"}
Scope = dict[str, Any]
Headers = list[tuple[bytes, bytes]]
Answered = tuple[int, bytes, Headers]


@dataclass(frozen=True, slots=True)
class _Request:
    """One request of a client."""

    turn: int
    client: str
    path: str
    scope: Scope
    body: bytes = b""


class HostileOperator:
    """Answers the clients of one run.

    Attributes:
        fleet: its enclaves.
        turn: how many requests the clients made.
        seen: all bytes that went by.
    """

    def __init__(self, hosting: Hosting, schedule: Schedule, story: list[Line]) -> None:
        self._hosting = hosting
        self._steps = list(schedule)
        self._keeps_copies = any(step.action == "roll-back" for step in schedule)
        self._tampering = Tampering()
        # Mails that are kept back: until which request, and for whom.
        self._late: list[tuple[int, Boot, _Request]] = []
        self._lies: dict[str, Step] = {}
        self._busy = asyncio.Lock()
        self._passed = asyncio.Event()
        self.fleet = Fleet(hosting)
        self.turn = 0
        self._story = story
        self.seen: list[bytes] = []

    async def behave(self) -> None:
        """Be honest from now on: one boot for everybody, and everything as it comes."""
        async with self._busy:
            self._steps.clear()
            self._lies.clear()
            self._late.clear()
            self.fleet.unite()

    # Requests -----------------------------------------------------------------------------

    async def __call__(self, path: str, scope: Scope, receive: Any, send: Any) -> None:
        """Answer one request, whose path is `CLIENT/…`."""
        client, _, rest = path.partition("/")
        self.turn += 1
        scope = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
        request = _Request(self.turn, client, scope["path"], scope)
        step, boot = await self._begin(request)
        if request.path not in ("/mail", "/instance"):
            # Streams, polls and challenges go through as they come.
            if boot.host is None:
                await _answer(send, (503, b"", []))
            else:
                await boot.host(scope, receive, send)
            return
        body = await _read(receive)
        self.seen.append(body)
        request = _Request(self.turn, client, scope["path"], scope, body)
        try:
            if request.path == "/instance":
                answered = await self._info(boot, request, step)
            else:
                answered = await self._mail(boot, request, step)
                self._tampering.requests.append((client, body))
        except HungUp:
            # An answer that has begun and does not end: the server closes the connection.
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise
        await _answer(send, answered)

    async def _begin(self, request: _Request) -> tuple[Step | None, Boot]:
        """Do what is due with boots and late mails; gives the step that is to change this request, and who gets it."""
        async with self._busy:
            due = [late for late in self._late if late[0] <= request.turn]
            for late in due:
                self._late.remove(late)
                await self._forward(late[1], late[2])
            self.fleet.heal(request.turn)
            if self._keeps_copies and request.path == "/mail":
                self.fleet.keep_copy()
            while (step := self._next(request, to_boots=True)) is not None:
                self._did(request, await self.fleet.act(step, request.client, request.turn))
            step = self._next(request, to_boots=False)
            return step, await self.fleet.boot_for(request.client, request.turn)

    def _next(self, request: _Request, *, to_boots: bool) -> Step | None:
        """The first step that is due and fits this request; it is taken out."""
        for step in self._steps:
            if step.position > request.turn:
                break
            fits = (step.action in _TO_BOOTS) is to_boots and (
                to_boots or request.path == "/mail" or (request.path == "/instance" and step.action in _TO_INFO)
            )
            if fits:
                self._steps.remove(step)
                return step
        return None

    def _did(self, request: _Request, text: str) -> None:
        self._story.append(Line(request.turn, request.client, text, by_operator=True))

    async def _forward(self, boot: Boot, request: _Request, body: bytes | None = None) -> Answered:
        answered = await boot.ask(request.scope, request.body if body is None else body)
        self.seen.append(answered[1])
        if request.path == "/mail" and answered[0] == 200:
            self._tampering.answers.append((request.client, answered[1]))
        self._passed.set()
        self._passed.clear()
        return answered

    async def _restart(self) -> str:
        async with self._busy:
            return await self.fleet.restart()

    # Instance info ---------------------------------------------------------------------------

    async def _info(self, boot: Boot, request: _Request, step: Step | None) -> Answered:
        status, info, headers = await self._forward(boot, request)
        step = self._lies.pop(request.client, step)
        if step is None or status != 200:
            return status, info, headers
        old = self._hosting.infos
        if step.action == "clock":
            days = _AHEAD_DAYS if step.variant == "ahead" else _BEHIND_DAYS
            self._did(request, f"gave endorsements dated by a clock that is {abs(days):.0f} days {step.variant}")
        elif step.variant == "info" and old:
            self._did(request, "gave the instance info of an enclave that is gone")
            return status, old[-1 - step.number % len(old)], headers
        else:
            days = _STALE_DAYS
            self._did(request, f"gave endorsements that are {-days:.0f} days old")
        return status, self._hosting.dated(info, days), headers

    # Mail ------------------------------------------------------------------------------------

    async def _mail(self, boot: Boot, request: _Request, step: Step | None) -> Answered:
        if step is None:
            return await self._forward(boot, request)
        match step.action:
            case "stale" | "clock":
                # Have the client look at the instance again, and lie then.
                self._lies[request.client] = step
                self._did(request, "said that the enclave does not know this session")
                return 409, b"", []
            case "drop" | "delay":
                return await self._withhold(boot, request, step)
            case "reorder":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PASSING_SECONDS):
                        await self._passed.wait()
                self._did(request, "held the mail until another one had passed it, or none came")
                return await self._forward(boot, request)
            case "duplicate":
                answers = [await self._forward(boot, request), await self._forward(boot, request)]
                self._did(request, f"gave the mail to the enclave twice, and the client its {step.variant} answer")
                return answers[step.variant == "second"]
            case "restart":
                return await self._die(boot, request, step)
            case "garbage" if step.variant in _FRAMES:
                return await self._garble(boot, request, step)
            case "replay" if step.variant != "answer":
                older, text = self._tampering.older(step)
                self._did(request, text)
                for body in older:
                    await self._forward(boot, request, body)
                return await self._forward(boot, request)
        return await self._tamper(boot, request, step)

    async def _tamper(self, boot: Boot, request: _Request, step: Step) -> Answered:
        if step.variant == "answer":
            status, answer, headers = await self._forward(boot, request)
            answer, text = self._tampering.answer(step, request.client, answer)
            self._did(request, text)
            return status, answer, headers
        body, text = self._tampering.request(step, request.client, request.body)
        self._did(request, text)
        return await self._forward(boot, request, body)

    async def _withhold(self, boot: Boot, request: _Request, step: Step) -> Answered:
        if step.action == "delay":
            later = 1 + step.number % _LATEST
            self._late.append((request.turn + later, boot, request))
            self._did(request, f"kept the mail back, and gave it to the enclave {times(later, 'request')} later")
        elif step.variant == "answer":
            await self._forward(boot, request)
            self._did(request, "gave the mail to the enclave, and threw its answer away")
        else:
            self._did(request, "threw the mail away")
        raise HungUp

    async def _die(self, boot: Boot, request: _Request, step: Step) -> Answered:
        if step.variant == "before":
            besides = await self._restart()
            self._did(request, f"killed the enclave and started it again{besides}, before it had the mail")
            return await self._forward(await self.fleet.boot_for(request.client, request.turn), request)
        await self._forward(boot, request)
        besides = await self._restart()
        self._did(
            request, f"killed the enclave and started it again{besides}, after it had the mail; its answer was lost"
        )
        raise HungUp

    async def _garble(self, boot: Boot, request: _Request, step: Step) -> Answered:
        """Break the channel, and forward to an enclave that may say nothing more; then it is started again."""
        self._did(request, f"wrote {_FRAMES[step.variant]} to the enclave's channel, before the mail")
        boot.garble(step.variant, request.body)
        self.fleet.continuous = False
        try:
            async with asyncio.timeout(_SILENT_SECONDS):
                return await self._forward(boot, request)
        except TimeoutError:
            await boot.kill()
            if boot is self.fleet.main:
                await self._restart()
            self._did(request, "got no answer, killed the enclave and started it again")
            raise HungUp from None


async def _read(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body"):
            return body


async def _answer(send: Any, answered: Answered) -> None:
    status, body, headers = answered
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    size = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*kept, size]})
    await send({"type": "http.response.body", "body": body})
