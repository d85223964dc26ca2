"""The state that the host gives when a boot starts, before anything of this boot leaves.

Runs inside the enclave, blocking. What the host stored is hostile until it
authenticates; whose it may be is a question of the sealing key.

Spec: spec/state.md section 8.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from conclave._crypto import Secret
from conclave._framing import Frame, FrameReader, Kind, Send, pack
from conclave.enclave._state import State
from conclave.enclave.drivers import Mounted, Tee
from conclave.errors import StateError, WrongKeyError
from conclave.persistence.log import Log, Stored, What

CONTEXT: Final = b"state/1"
# Of the host's other frames, so many may come before it has given the state.
_MAX_EARLY: Final = 256
_GIVE_UP: Final = "; start the one that wrote it, or give its state up: `conclave state reset STORE`"
_LOAD: Final = 1
_END, _UNREADABLE = 3, 4


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the host gave at start-up.

    Attributes:
        early: frames of other kinds that came before its end.
        rest: bytes that came behind it, and are no whole frame.
        sizes: bytes of what came, by `What`.
    """

    log: Log
    early: tuple[Frame, ...]
    rest: bytes
    sizes: Counter[int]

    def begin(self, send: Send, *, full: Callable[[], bool]) -> State:
        """Go on with it: this boot's record is the next."""
        # What had to be replayed for want of a snapshot counts for the next one.
        return State(self.log, send, full=full, written=self.sizes[What.ENTRY], snapshot=self.sizes[What.CHUNK])


def load(channel: socket.socket, tee: Tee, mounted: Mounted, policy: str) -> Loaded:
    """Ask the host for the state, blocking, before anything of this boot leaves.

    Raises:
        StateError, WrongKeyError: what the host gave is no state of this program's.
        UnsupportedPolicy: this TEE cannot bind a key to that.
    """
    reader = FrameReader(Kind)
    early: list[Frame] = []
    own = Secret(tee.sealing_key(policy, CONTEXT))

    def key(bundle_id: bytes, level: int) -> Secret:
        if policy == "code" and (bundle_id, level) != (mounted.bundle_id, mounted.revocation_level):
            raise WrongKeyError(f"the state is of another program, and `persistence` binds it to exact code{_GIVE_UP}")
        # Of an older release, if it is what it claims; that shows when the key opens something.
        return own if level == mounted.revocation_level else Secret(tee.sealing_key(policy, CONTEXT, level=level))

    channel.sendall(pack(Kind.LOAD, _LOAD))
    sizes: Counter[int] = Counter()
    stored = _stored(channel, reader, early, sizes)
    log = Log.restore(stored, key=key, bundle_id=mounted.bundle_id, level=mounted.revocation_level)
    return Loaded(log, tuple(early), reader.rest(), sizes)


def _stored(channel: socket.socket, reader: FrameReader, early: list[Frame], sizes: Counter[int]) -> Iterator[Stored]:
    """What the host gives, up to its end."""
    while True:
        size = channel.recv_into(reader.space())
        if not size:
            raise StateError("the host closed the channel before it had given the state")
        frames = reader.received(size)
        for at, frame in enumerate(frames):
            if frame.kind != Kind.STORED:
                early.append(frame)
                if len(early) > _MAX_EARLY:
                    raise StateError("the host sends other frames in place of the state")
                continue
            what = frame.payload[0] if frame.payload else _UNREADABLE
            if what == _UNREADABLE:
                raise StateError("the host says that its store cannot be read; nothing was changed, start again later")
            if what == _END:
                early.extend(frames[at + 1 :])
            sizes[what] += len(frame.payload)
            yield what, frame.payload[1:]
            if what == _END:
                return
