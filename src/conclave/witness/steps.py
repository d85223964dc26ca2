"""Which steps a witness takes: the whole of its judgement, without IO.

Spec: spec/witness.md section 4 (WIT-3 to WIT-6).
"""

from __future__ import annotations

from conclave._codec import Record, decode, encode
from conclave._crypto import SigningKey, random_bytes
from conclave.errors import FormatError, SignatureError, StateError
from conclave.persistence.witness import (
    MAX_MESSAGE,
    AdvanceRequest,
    HeadRequest,
    Standing,
    check_countersignature,
    check_step,
    countersign,
    log_id_of,
)


class _Kept(Record, frozen=True):
    # Different each time it is written: what is written anew makes what was read durable.
    mark: bytes
    standing: Standing


def read_head_request(data: bytes) -> HeadRequest:
    """Read a request. Raises FormatError."""
    return decode(HeadRequest, data, max_size=MAX_MESSAGE, what="head request")


def read_advance_request(data: bytes) -> AdvanceRequest:
    """Read a request and check that the log's own key signed its step.

    Raises:
        FormatError: no request; or its step goes nowhere, or back.
        SignatureError: somebody else's step.
    """
    request = decode(AdvanceRequest, data, max_size=MAX_MESSAGE, what="advance request")
    step = request.step
    if step.previous is not None and step.new.version <= step.previous.version:
        raise FormatError("a step goes to a later version than the one that it begins at")
    check_step(step, request.signature)
    return request


def take(key: SigningKey, standing: Standing | None, request: AdvanceRequest) -> Standing | None:
    """Where the log stands once this request is taken; None: it begins somewhere else than where the log stands.

    The same object as before if the log stands there already.
    """
    step = request.step
    if standing is not None and standing.step.new == step.new:
        return standing
    if step.previous != (None if standing is None else standing.step.new):
        return None
    signature = countersign(key, log_id_of(step.log_key), step.new)
    return Standing(step=step, signature=request.signature, countersignature=signature)


def pack(standing: Standing) -> bytes:
    """What is kept of a log."""
    return encode(_Kept(mark=random_bytes(16), standing=standing))


def unpack(data: bytes, *, key: bytes, log_key: bytes) -> Standing:
    """Read what was kept.

    Raises:
        StateError: it is not what this witness kept of this log: the store is broken, or another's.
    """
    try:
        standing = decode(_Kept, data, max_size=2 * MAX_MESSAGE, what="kept standing").standing
        if standing.step.log_key != log_key:
            raise FormatError("another log's")
        check_step(standing.step, standing.signature)
        check_countersignature(key, log_id_of(log_key), standing.step.new, standing.countersignature)
    except (FormatError, SignatureError):
        raise StateError(
            "what the store has of a log is not what this witness countersigned; it says nothing of that log any more "
            "(is it the right store for this key?)"
        ) from None
    return standing
