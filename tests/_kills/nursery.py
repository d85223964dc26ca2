"""A warm process that others are forked from: hosts and enclaves start in milliseconds, and are killed in the middle.

Everything is loaded here, nothing runs here: one thread, no event loop, no keys. It alone reaps its
children, so that a process id it kills is always theirs.
"""

from __future__ import annotations

import gc
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

Request = dict[str, Any]


def ask(control: socket.socket, request: Request, descriptors: tuple[int, ...] = ()) -> dict[str, Any]:
    """One request of the nursery, and its answer."""
    socket.send_fds(control, [json.dumps(request).encode()], descriptors)
    answer: dict[str, Any] = json.loads(control.recv(65536) or b'{"pid": 0}')
    return answer


class Nursery:
    """The process, from outside."""

    def __init__(self, place: Path, *, seed: int = 0) -> None:
        """Nothing runs before the block.

        Args:
            place: a directory with `bundle`, `machine` and room for what is written.
        """
        self._place = place
        self._seed = seed

    def __enter__(self) -> Self:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [
            sys.executable,
            "-m",
            "tests._kills.nursery",
            str(theirs.fileno()),
            str(self._place),
            str(self._seed),
        ]
        with (self._place / "stderr").open("ab") as errors:
            self._process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stderr=errors, cwd=Path(__file__).parent.parent.parent
            )
        theirs.close()
        return self

    def fork(self, name: str, config: Request, connection: socket.socket) -> int:
        """Start a host of that name, whose clients are at the other end of this."""
        pid: int = ask(self._control, {"do": "host", "name": name, **config}, (connection.fileno(),))["pid"]
        return pid

    def kill(self, name: str, *what: str) -> list[str]:
        """Kill `host` or `enclave` of that name, or both; which of them there were."""
        killed: list[str] = ask(self._control, {"do": "kill", "name": name, "what": what})["killed"]
        return killed

    def enclave(self, config: Request, channel: socket.socket, output: int) -> int:
        """Start an enclave without a host."""
        pid: int = ask(self._control, {"do": "enclave", "name": "", **config}, (channel.fileno(), output))["pid"]
        return pid

    def __exit__(self, *error: object) -> None:
        self._control.close()
        self._process.wait(60)

    @property
    def errors(self) -> str:
        """Everything that any of them wrote as an error."""
        return (self._place / "stderr").read_text()


class _Nursery:
    """The same from inside."""

    def __init__(self, control: socket.socket, place: Path, seed: int) -> None:
        self._control = control
        self._place = place
        self._chance = random.Random(seed)
        self._selector = selectors.DefaultSelector()
        # By host and enclave of each name.
        self._children: dict[int, tuple[str, str]] = {}

    def run(self) -> NoReturn:
        self._selector.register(self._control, selectors.EVENT_READ, "")
        while True:
            for key, _ in self._selector.select():
                assert isinstance(key.fileobj, socket.socket)
                data, descriptors = b"", list[int]()
                # Who asks may be killed at any moment, too.
                with suppress(ConnectionError):
                    data, descriptors, _, _ = socket.recv_fds(key.fileobj, 65536, 4)
                if data:
                    answer = self._answer(json.loads(data), descriptors)
                    for descriptor in descriptors:
                        os.close(descriptor)
                    with suppress(ConnectionError):
                        key.fileobj.send(json.dumps(answer).encode())
                elif key.fileobj is self._control:
                    for child in self._children:
                        os.kill(child, signal.SIGKILL)
                    os._exit(0)
                else:
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()

    def _answer(self, request: Request, descriptors: list[int]) -> dict[str, Any]:
        from tests._kills import boots

        self._reap()
        name = request.get("name", "")
        # A seed for each child: it has the parent's generator otherwise, in the same state as its siblings.
        seed = self._chance.getrandbits(64)
        if request["do"] == "host":
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            pid = self._fork(
                ("host", name),
                lambda: boots.host(self._place, request, seed, theirs, socket.socket(fileno=descriptors[0])),
                {theirs.fileno(), *descriptors},
            )
            theirs.close()
            self._selector.register(ours, selectors.EVENT_READ, name)
            return {"pid": pid}
        if request["do"] == "enclave":
            channel, output = descriptors
            work = ("enclave", name)
            return {
                "pid": self._fork(
                    work, lambda: boots.enclave(self._place, request, seed, channel, output), set(descriptors)
                )
            }
        pids = [pid for pid, (what, of) in self._children.items() if of == name and what in request["what"]]
        if "pid" in request:
            pids = [pid for pid in pids if pid == request["pid"]]
        killed = [self._children[pid][0] for pid in pids]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
            del self._children[pid]
        return {"killed": killed}

    def _reap(self) -> None:
        while self._children:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            del self._children[pid]

    def _fork(self, what: tuple[str, str], work: Callable[[], None], kept: set[int]) -> int:
        pid = os.fork()
        if pid:
            self._children[pid] = what
            return pid
        try:
            for number in map(int, os.listdir("/proc/self/fd")):
                if number > 2 and number not in kept:
                    try:
                        os.close(number)
                    except OSError:
                        continue
            work()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except ConnectionError:
            # An enclave whose host is gone.
            os._exit(1)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)


def main() -> None:
    from tests._kills import boots

    _, control, place, seed = sys.argv
    boots.warm(Path(place))
    gc.collect()
    gc.freeze()
    _Nursery(socket.socket(fileno=int(control)), Path(place), int(seed)).run()


if __name__ == "__main__":
    main()
