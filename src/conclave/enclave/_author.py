"""The author's object: what a request calls of it, and what its results and errors become.

Runs inside the enclave. Bodies of requests are the client's, and hostile. What
author code raises is the author's: its words leave only where they were declared.

Spec: spec/rpc.md.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from conclave.enclave.sdk import Enclave
from conclave.errors import FormatError
from conclave.mail import MAX_BODY, ReplyKind, Request, RequestKind
from conclave.mail.padding import DoesNotFit, Padding
from conclave.rpc.interface import DOES_NOT_FIT, CallFailure, Interface, Method, RpcError, decode_call

if TYPE_CHECKING:
    from conclave.enclave._callers import Callers

MAX_MESSAGE: Final = 4096
_encode_result = msgspec.msgpack.Encoder().encode
# Looking up the member of an enumeration costs more than comparing it.
_CALL: Final = RequestKind.CALL
_INTRODUCTION: Final = RequestKind.INTRODUCTION
_RESULT: Final = ReplyKind.RESULT
_CALLS: Final = frozenset({RequestKind.CALL, RequestKind.STREAM})


class Target:
    """A handler of the author's object, and how it is called."""

    __slots__ = ("asynchronous", "handler", "method", "streams")

    def __init__(self, handler: Callable[..., Any], method: Method | None = None) -> None:
        self.handler = handler
        self.asynchronous = inspect.iscoroutinefunction(handler)
        self.method = method
        self.streams = method is not None and method.streams


class Author:
    """Handlers of one enclave object. `callers` is set of one that declares some."""

    def __init__(self, enclave: Enclave, interface: Interface, padding: Padding, *, debug: bool) -> None:
        """Look at the object's methods.

        Args:
            padding: of what names no method, or one without a padding of its own.
            debug: tracebacks of the author's code may leave the enclave.
        """
        self._methods = {n: Target(getattr(enclave, n), m) for n, m in interface.methods.items()}
        self.on_mail = Target(enclave.on_mail)
        self._padding = padding
        self._paddings = {n.encode(): m.padding for n, m in interface.methods.items() if m.padding is not None}
        self._debug = debug
        self.callers: Callers | None = None

    def padding_of(self, request: Request) -> Padding:
        """A call of an unknown method is padded like what is no call."""
        if self._paddings and request.kind in _CALLS and request.body:
            return self._paddings.get(bytes(request.body[1 : 1 + request.body[0]]), self._padding)
        return self._padding

    def called(self, body: bytes, sender: bytes) -> tuple[Target, Method, tuple[Any, ...]]:
        """What the body of a call names, and its arguments. Raises FormatError, and what `Callers.demand` raises."""
        name, arguments = decode_call(body)
        target = self._methods.get(name)
        if target is None or target.method is None:
            raise FormatError(f"this enclave has no method of that name; it has: {', '.join(self._methods)}")
        if target.method.callers and self.callers is not None:
            self.callers.demand(target.method.callers, sender)
        return target, target.method, target.method.decode_arguments(arguments)

    def prepare_stream(self, request: Request, sender: bytes) -> tuple[Callable[..., Any], Method, tuple[Any, ...]]:
        """The same of a stream call."""
        target, method, arguments = self.called(request.body, sender)
        if not target.streams:
            raise FormatError(f"{method.name}() takes and returns no stream: it is called by a plain call")
        return target.handler, method, arguments

    def outcome(self, request: Request, result: Any) -> tuple[ReplyKind, bytes]:
        """Kind and body of the last reply."""
        if request.kind == _CALL:
            body, kind = _encode_result(result), _RESULT
        elif request.kind == _INTRODUCTION:
            body, kind = b"", ReplyKind.INTRODUCED
        elif result is None:
            body, kind = b"", ReplyKind.ACCEPTED
        elif isinstance(result, bytes):
            body, kind = result, ReplyKind.MAIL
        else:
            raise TypeError("on_mail returns bytes or None")
        if len(body) > MAX_BODY:
            raise DoesNotFit(f"a result of {len(body)} bytes exceeds {MAX_BODY}")
        return kind, body

    def failure(self, error: BaseException) -> CallFailure:
        """What the caller learns of an error. Within the handler of its exception."""
        if isinstance(error, RpcError):
            return CallFailure(type=type(error).__name__[:128], message=str(error)[:MAX_MESSAGE])
        if isinstance(error, FormatError):
            return CallFailure(type="InvalidCall", message=str(error)[:MAX_MESSAGE])
        self.report()
        if isinstance(error, DoesNotFit):
            return DOES_NOT_FIT
        return CallFailure(type="error", message="the enclave's code failed")

    def report(self) -> None:
        """Tell the developer of a debug build what is being handled."""
        if self._debug:
            traceback.print_exc(file=sys.stderr)
