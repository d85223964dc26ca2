"""An address and port that a host has for itself, before anybody is answered there.

Runs in the untrusted host. Taking it needs neither an event loop nor a server: a port
that cannot be had is known before an enclave is launched.

Spec: spec/http.md section 4 (HTTP-26).
"""

from __future__ import annotations

import errno
import socket
from typing import Any, Final

from conclave.errors import TransportError

_WHY_NOT: Final = {
    errno.EADDRINUSE: "another program listens there; choose another port (--port 0 takes a free one)",
    errno.EADDRNOTAVAIL: "that is no address of this machine; choose another address",
    errno.EACCES: "this user may not take that port; choose another port, above 1023",
    errno.EMFILE: "this process may open no more files; raise `ulimit -n`",
    socket.EAI_NONAME: "no address is known by that name",
}
# One of the addresses of a name, of a kind that this machine does not have.
_NOT_HERE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


class Place:
    """Sockets at one port, of each address that a name has. Clients are refused until `listen`."""

    def __init__(self, address: str, port: int) -> None:
        """Take it.

        Args:
            address: an address or a name; "": every address of this machine.
            port: 0 takes a free one.

        Raises:
            TransportError: it cannot be had.
        """
        self._address = address
        self.port = port
        self.sockets: list[socket.socket] = []
        trouble: OSError | None = None
        for family, kind, protocol, _, where in self._found():
            try:
                self.sockets.append(self._bound(family, kind, protocol, where))
            except OSError as error:
                trouble = error
                if error.errno not in _NOT_HERE:
                    break
        if trouble is not None and (trouble.errno not in _NOT_HERE or not self.sockets):
            self.close()
            raise self._refused(trouble) from None

    def _found(self) -> dict[tuple[int, int, int, str, tuple[Any, ...]], None]:
        try:
            found = socket.getaddrinfo(
                self._address or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except OSError as error:
            raise self._refused(error) from None
        except ValueError:
            # What is too long for a name does not even reach the resolver.
            raise self._refused(OSError(socket.EAI_NONAME, "")) from None
        # A name may have the same address twice.
        return dict.fromkeys(found)

    def _bound(self, family: int, kind: int, protocol: int, where: tuple[Any, ...]) -> socket.socket:
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind((where[0], self.port, *where[2:]))
        except OSError:
            taken.close()
            raise
        # The others get the port that the first one took.
        self.port = taken.getsockname()[1]
        return taken

    def listen(self, backlog: int) -> None:
        """Have clients connect.

        Raises:
            TransportError: another program, which took the place at the same time, listens there.
        """
        try:
            for taken in self.sockets:
                taken.listen(backlog)
        except OSError as error:
            raise self._refused(error) from None

    def close(self) -> None:
        """Give it back."""
        for taken in self.sockets:
            taken.close()

    def url(self, scheme: str) -> str:
        """What clients ask for."""
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"{scheme}://{host}:{self.port}"

    def _refused(self, error: OSError) -> TransportError:
        why = _WHY_NOT.get(error.errno or 0, error.strerror or "the system refuses")
        return TransportError(f"cannot listen on {self._address}:{self.port}: {why}")
