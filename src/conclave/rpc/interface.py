"""The RPC interface of an enclave class: methods, types, schema and digest.

Runs at build time, in the enclave and in typed clients. The schema's digest is
in the instance claims, so a typed client refuses drift before it calls.

Spec: spec/rpc.md.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, overload

import msgspec

from conclave import _codec, _crypto
from conclave.errors import FormatError
from conclave.mail.padding import Padding
from conclave.rpc.types import StreamType, describe, stream_type

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__conclave_rpc__"
MAX_METHOD_NAME = 128
# Of a type in a message.
_MAX_SHOWN: Final = 200


class RpcError(Exception):
    """Base for errors an author declares: class name and message reach the caller.

    Every other exception of the author's code reaches the caller as an opaque
    `CallError` without message.
    """


@overload
def rpc(method: F, /) -> F: ...
@overload
def rpc(
    *, retry: bool = True, padding: Padding | None = None, callers: str | tuple[str, ...] = ()
) -> Callable[[F], F]: ...
def rpc(
    method: Any = None,
    /,
    *,
    retry: bool = True,
    padding: Padding | None = None,
    callers: str | tuple[str, ...] = (),
) -> Any:
    """Mark a method as callable by clients.

    Args:
        retry: whether a client may send the call again to a *new* instance when
            the old one went away without answering. With False it gets
            `TransportError` and decides itself.
        padding: how everything of this method is padded: its calls (by typed
            clients), results and errors; None for the class attribute `padding`.
        callers: names in the class's `callers`: only enclaves that introduced themselves
            as one of these may call. Everybody else gets `NotIntroduced`.
    """
    if padding is not None and not isinstance(padding, Padding):
        raise TypeError("padding is padme, fixed(…) or buckets(…)")

    def mark(function: Any) -> Any:
        names = (callers,) if isinstance(callers, str) else tuple(callers)
        setattr(function, _MARK, {"retry": retry, "padding": padding, "callers": names})
        return function

    return mark if method is None else mark(method)


@dataclass(frozen=True, slots=True)
class Method:
    """One callable method, with the codecs of its arguments and result."""

    name: str
    parameters: tuple[tuple[str, str, bool], ...]
    returns: str
    retry: bool
    argument_types: tuple[Any, ...]
    defaults: tuple[Any, ...]
    return_type: Any
    padding: Padding | None
    callers: tuple[str, ...]
    _all_arguments: msgspec.msgpack.Decoder[tuple[Any, ...]] = field(repr=False, compare=False)
    upload: StreamType | None = None
    upload_at: int = -1
    download: StreamType | None = None

    @property
    def streams(self) -> bool:
        """Whether it is called by a stream call: outside the order, and never retried."""
        return self.upload is not None or self.download is not None

    def split(self, arguments: list[Any]) -> tuple[list[Any], Any]:
        """Arguments as `bind` gives them: those of the call, and the iterator to upload."""
        if self.upload is None:
            return arguments, None
        return arguments[: self.upload_at] + arguments[self.upload_at + 1 :], arguments[self.upload_at]

    def join(self, arguments: tuple[Any, ...], upload: Any) -> tuple[Any, ...]:
        """The reverse of `split`, in the enclave. Every parameter before the stream is a required one."""
        if self.upload is None:
            return arguments
        return (*arguments[: self.upload_at], upload, *arguments[self.upload_at :])

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Arguments in order, defaults filled in. Raises TypeError as Python does."""
        names = [name for name, _, _ in self.parameters]
        if len(args) > len(names):
            raise TypeError(f"{_takes(self.name, self.parameters)}, got {len(args)}")
        values = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name not in names or name in values:
                raise TypeError(f"{self.name}() got an unexpected or repeated argument '{name}'")
            values[name] = value
        missing = [n for n, _, optional in self.parameters if not optional and n not in values]
        if missing:
            raise TypeError(f"{self.name}() is missing {', '.join(missing)}")
        # Trailing defaults stay with the enclave: it owns their values.
        count = max((i + 1 for i, n in enumerate(names) if n in values), default=0)
        return [values.get(names[i], self.defaults[i]) for i in range(count)]

    def decode_arguments(self, body: bytes | memoryview) -> tuple[Any, ...]:
        """Arguments from untrusted bytes.

        Raises:
            FormatError: not an array, too few or too many, or a wrong type; the
                message names the position, never the value.
        """
        try:
            return self._all_arguments.decode(body)
        except (msgspec.MsgspecError, RecursionError, UnicodeError):
            # Fewer, because some have defaults, or wrong: one at a time, to say which.
            return self._decode_each(body)

    def _decode_each(self, body: bytes | memoryview) -> tuple[Any, ...]:
        try:
            raw = msgspec.msgpack.decode(body, type=list[msgspec.Raw])
        except (msgspec.MsgspecError, RecursionError):
            raise FormatError(f"{self.name}: arguments are not an array") from None
        # The stream does not come in the array.
        parameters = [p for at, p in enumerate(self.parameters) if at != self.upload_at]
        needed = sum(not optional for _, _, optional in parameters)
        if not needed <= len(raw) <= len(parameters):
            raise FormatError(f"{_takes(self.name, parameters)}, got {len(raw)}")
        values = []
        for part, (name, text, _), kind in zip(raw, parameters, self.argument_types, strict=False):
            try:
                values.append(msgspec.msgpack.decode(part, type=kind))
            except (msgspec.MsgspecError, RecursionError, UnicodeError):
                raise FormatError(f"{self.name}(): argument '{name}' is not {text}") from None
        return tuple(values)


def _takes(name: str, parameters: Sequence[tuple[str, str, bool]]) -> str:
    """`add(number) takes 1 argument`: what a call with too few or too many arguments is told."""
    shown = ", ".join(f"{n}=…" if optional else n for n, _, optional in parameters)
    needed, most = sum(not optional for _, _, optional in parameters), len(parameters)
    count = f"{most}" if needed == most else f"{needed} to {most}"
    return f"{name}({shown}) takes {count} argument{'' if most == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Interface:
    """All methods of one enclave class.

    Attributes:
        padding: what the class declares for everything that is no call of a known
            method; None if it declares nothing.
    """

    methods: dict[str, Method]
    padding: Padding | None = None

    def encode(self) -> bytes:
        """The interface schema in canonical form."""
        return _codec.encode(
            [
                _text(self.padding),
                [
                    [m.name, list(map(list, m.parameters)), m.returns, m.retry, _text(m.padding)]
                    for m in sorted(self.methods.values(), key=lambda m: m.name)
                ],
            ]
        )

    def digest(self) -> bytes:
        """SHA-256 of the schema, as in the instance claims."""
        return interface_digest(self.encode())


def _text(padding: Padding | None) -> str | None:
    return None if padding is None else str(padding)


def interface_digest(schema: bytes) -> bytes:
    """SHA-256 of an encoded interface schema."""
    return _crypto.sha256(schema)


def interface_of(cls: type) -> Interface:
    """The interface of an enclave class, or of a class that mirrors one.

    Raises:
        TypeError: a method lacks annotations, or uses types that do not cross.
    """
    padding = getattr(cls, "padding", None)
    if padding is not None and not isinstance(padding, Padding):
        raise TypeError(f"{cls.__name__}.padding is padme, fixed(…) or buckets(…)")
    methods = {}
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        options = getattr(function, _MARK, None)
        if options is None:
            continue
        if len(name.encode()) > MAX_METHOD_NAME:
            raise TypeError(f"method name longer than {MAX_METHOD_NAME} bytes: {name}")
        unknown = [c for c in options["callers"] if c not in getattr(cls, "callers", {})]
        if unknown:
            raise TypeError(f"{cls.__name__}.{name}: the class's `callers` has no {', '.join(unknown)}")
        methods[name] = _method(cls, name, function, options, padding)
    return Interface(methods, padding)


def _method(
    cls: type, name: str, function: Callable[..., Any], options: dict[str, Any], padding: Padding | None
) -> Method:
    where = f"{cls.__name__}.{name}"
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TypeError(f"{where}: annotation {error.name!r} cannot be resolved") from None
    parameters, kinds, defaults = [], [], []
    upload, upload_at = None, -1
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"{where}: *args, **kwargs and keyword-only parameters do not cross")
        if parameter.name not in hints:
            raise TypeError(f"{where}: parameter '{parameter.name}' needs a type annotation")
        kind = hints[parameter.name]
        optional = parameter.default is not parameter.empty
        stream, text = _crossing(kind, f"{where}: parameter '{parameter.name}'")
        if stream is None:
            parameters.append((parameter.name, text, optional))
            kinds.append(kind)
        elif upload is not None or optional or stream.generator:
            raise TypeError(
                f"{where}: a method takes one stream, without a default, "
                "as Iterator[T], Iterable[T], AsyncIterator[T] or AsyncIterable[T]"
            )
        else:
            upload, upload_at = stream, len(parameters)
            parameters.append((parameter.name, text, False))
        defaults.append(parameter.default)
    if "return" not in hints:
        raise TypeError(f"{where}: needs a return annotation (-> None if it returns nothing)")
    returns = hints["return"]
    download, text = _crossing(returns, f"{where}: result")
    try:
        everything = msgspec.msgpack.Decoder(types.GenericAlias(tuple, tuple(kinds)))
    except TypeError as error:
        # Each of the types crosses, but a union may have several that decoding could not tell apart.
        raise TypeError(f"{where}: {error}") from None
    return Method(
        name,
        tuple(parameters),
        text,
        options["retry"],
        tuple(kinds),
        tuple(defaults),
        returns if download is None else download.item,
        options["padding"] or padding,
        options["callers"],
        everything,
        upload,
        upload_at,
        download,
    )


def _crossing(kind: Any, where: str) -> tuple[StreamType | None, str]:
    """The stream that an annotation means, if any, and its text in the schema; errors say where it stands."""
    try:
        stream = stream_type(kind)
        return stream, describe(kind) if stream is None else stream.text
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None


def check_handlers(cls: type, interface: Interface) -> None:
    """Check that an enclave class can run the methods of its interface.

    Raises:
        TypeError: a method would wait for its stream where nothing else can run.
    """
    for method in interface.methods.values():
        function = getattr(cls, method.name)
        if method.upload is None or method.upload.asynchronous:
            continue
        where = f"{cls.__name__}.{method.name}"
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{where}: an async method takes its stream as AsyncIterator[T], not Iterator[T]")
        if getattr(cls, "threads", 1) < 2:
            raise TypeError(
                f"{where}: a plain method that takes an Iterator waits for it, so it needs a thread: "
                "set threads = 2 or more in the class, or write it with async def and AsyncIterator[T]"
            )


def encode_call(name: str, arguments: list[Any]) -> bytes:
    """The body of a call mail: name size (1) ‖ name ‖ MessagePack array."""
    raw = name.encode()
    if not 0 < len(raw) <= MAX_METHOD_NAME:
        raise ValueError("a method name has 1 to 128 bytes")
    try:
        return bytes((len(raw),)) + raw + msgspec.msgpack.encode(arguments)
    except (TypeError, OverflowError, msgspec.MsgspecError):
        raise TypeError("an argument cannot be encoded: see conclave.rpc for the types that cross") from None


def decode_call(body: bytes | memoryview) -> tuple[str, bytes | memoryview]:
    """Split a call body; a memoryview is not copied. Raises FormatError."""
    end = 1 + body[0] if body else 0
    if end < 2 or len(body) < end:
        raise FormatError("not a call: truncated method name")
    try:
        return str(body[1:end], "utf-8"), body[end:]
    except UnicodeDecodeError:
        raise FormatError("not a call: method name is not UTF-8") from None


def decode_result(body: bytes, kind: Any, *, method: str = "") -> Any:
    """A result from the enclave, of the named method.

    Raises:
        FormatError: it is none of the type; the message says of which, never a value.
    """
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        where = f"{method}(): " if method else ""
        raise FormatError(
            f"{where}the enclave's result does not have the declared type: "
            f"expected {_expected(kind)}, got {_type_of(body)}"
        ) from None


def _expected(kind: Any) -> str:
    try:
        return describe(kind)[:_MAX_SHOWN]
    except TypeError:
        # Whoever calls without the interface may ask for types that only msgspec knows.
        return str(getattr(kind, "__qualname__", kind))[:_MAX_SHOWN]


def _type_of(body: bytes) -> str:
    try:
        value = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError, TypeError):
        return "no MessagePack value"
    return "none" if value is None else type(value).__name__


class CallFailure(_codec.Record, frozen=True):
    """Body of a call error: a declared type name and message, or an opaque pair."""

    type: str
    message: str

    def encode(self, room: int) -> bytes:
        """As bytes, the message cut to what fits into `room` as far as that helps."""
        body = _codec.encode(self)
        if len(body) <= room:
            return body
        message = self.message.encode()
        kept = message[: max(0, len(message) - (len(body) - room))].decode(errors="ignore")
        return _codec.encode(CallFailure(type=self.type, message=kept))


DOES_NOT_FIT: Final = CallFailure(
    type="DoesNotFit", message="what the enclave answers is larger than this method's padding, or any mail, allows"
)


def error_body(failure: CallFailure, padding: Padding, *, beside: int = 0) -> tuple[bytes, Padding]:
    """The body of a call error, and how it is padded (RPC-13).

    Args:
        beside: what replies have besides their private header and body: 80 bytes where there is a log.
    """
    if failure is not DOES_NOT_FIT:
        room = padding.room - beside
        body = failure.encode(room)
        if len(body) <= room:
            return body, padding
    # In the size that the answer would have had, if any had been large enough.
    return _codec.encode(DOES_NOT_FIT), padding.largest
