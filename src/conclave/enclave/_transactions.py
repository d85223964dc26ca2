"""Handlers of an enclave whose state persists: each run is a transaction, the loser of two runs again.

Runs inside the enclave. Whatever a handler changes, replies and posts is there
with its commit, all of it or nothing.

Spec: spec/state.md.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final, Protocol, TypeVar

from conclave.enclave._posts import Posts
from conclave.enclave._state import MAX_TRANSACTION, State, Work
from conclave.mail import Channel, ReplyKind, Request
from conclave.mail.padding import DoesNotFit
from conclave.rpc.interface import RpcError

T = TypeVar("T")
# A run loses only to another one that was committed: who loses so often meets a bug, not bad luck.
_ATTEMPTS: Final = 100
Resolved = tuple[Callable[..., Any], tuple[Any, ...], bool]


class Conflict(RpcError):
    """Other calls changed what this one had read, again and again; nothing of it was done."""


class Answers(Protocol):
    """How the service answers requests."""

    def resolve(self, channel: Channel, request: Request) -> Resolved: ...
    def outcome(self, request: Request, result: Any) -> tuple[ReplyKind, bytes]: ...
    def replies(self, channel: Channel, request: Request, work: Work, kind: ReplyKind, body: bytes) -> None: ...
    def fail(self, channel: Channel, request: Request, error: BaseException) -> None: ...


class Transactions:
    """Runs the handlers of one boot."""

    def __init__(self, state: State, answers: Answers, posts: Callable[[], Posts], pool: Executor | None) -> None:
        self._state = state
        self._answers = answers
        self._posts = posts
        self._pool = pool

    def run(self, channel: Channel, request: Request, resolved: Resolved) -> None:
        """Run a handler on the loop to its end: no other can come between."""
        handler, arguments, _ = resolved
        work = self._state.begin(request.version)
        try:
            self._finish(channel, request, work, handler(*arguments))
        finally:
            self._state.end(work)

    async def run_later(self, channel: Channel, request: Request, resolved: Resolved | None) -> None:
        """Run a handler beside others, again if one of them changed what it had read."""
        try:
            for _ in range(_ATTEMPTS):
                work = self._state.begin(request.version)
                try:
                    # Once for each run: it may change its arguments.
                    handler, arguments, asynchronous = resolved or self._answers.resolve(channel, request)
                    resolved = None
                    if asynchronous:
                        result = await handler(*arguments)
                    else:
                        run = contextvars.copy_context().run
                        result = await asyncio.get_running_loop().run_in_executor(self._pool, run, handler, *arguments)
                    # One that only read was right when it began. One that wrote what another has written
                    # meanwhile was not, though it changes nothing; nor is mail in another order than its state.
                    if (work.transaction.only_read and not work.plans) or not work.transaction.conflicts():
                        self._finish(channel, request, work, result)
                        return
                finally:
                    self._state.end(work)
            raise Conflict("other calls changed what this one had read, each time it was tried; try again")
        except BaseException as error:
            self._answers.fail(channel, request, error)

    def _finish(self, channel: Channel, request: Request, work: Work, result: Any) -> None:
        kind, body = self._answers.outcome(request, result)
        # Nothing of it may fail once it is committed. Replies of others came since these were checked.
        channel.check(request.sequence, body, b"", last=not work.replies, waiting=max(0, len(work.replies) - 1))
        self.commit(work, size=len(body))
        with self._state.whole:
            self._answers.replies(channel, request, work, kind, body)

    def commit(self, work: Work, *, size: int = 0) -> None:
        """Raises OverloadedError, DoesNotFit, StateError: nothing was committed."""
        self._state.demand()
        size += work.size + work.transaction.size_bytes
        if size > MAX_TRANSACTION:
            raise DoesNotFit(f"changes, replies and posted mail of {size} bytes, more than {MAX_TRANSACTION}")
        # Before mail is numbered: its numbers are of the same record.
        self._state.make_room(size)
        posted = self._posts().take_all(work.plans) if work.plans else []
        with self._state.whole:
            self._state.commit(work, posted, size)

    def commit_once(self, work: Work) -> None:
        """Commit what cannot be run again. Raises Conflict; and as `commit`."""
        if work.transaction.conflicts():
            raise Conflict("another call changed what this one had read, and it is not run again; try again")
        self.commit(work)

    def atomically(self, function: Callable[[], T]) -> T:
        """Run a function as a handler runs, on the loop."""
        work = self._state.begin()
        try:
            result = function()
            self.commit(work)
            return result
        finally:
            self._state.end(work)

    # Streams -------------------------------------------------------------------------

    def seal(self) -> None:
        """What was committed is in a record: a stream's head, encrypted at once, tells of no older one."""
        self._state.flush()

    def begin_stream(self, context: contextvars.Context) -> Work:
        """A stream's handler begins in that context: it reads one version of the map for as long as it runs."""
        return context.run(self._state.begin)

    def finish_stream(self, work: Work, *, answers_by_stream: bool) -> None:
        """Commit what a stream's handler did, before its result leaves.

        Raises:
            RuntimeError: what it answered left before, so that nothing can go along with it.
            Conflict: it read what another has changed; a stream cannot be run again.
        """
        if answers_by_stream:
            if not work.transaction.only_read or work.plans:
                raise RuntimeError("a handler that answers by a stream changes nothing in self.map, and posts nothing")
        else:
            self.commit_once(work)

    def told(self, identity: bytes) -> bytes:
        """The context that a client is given along with what was committed just now."""
        self._state.flush()
        return self._state.context(identity)

    def end(self, work: Work) -> None:
        """The handler is over."""
        self._state.end(work)
