"""Heads of requests with a mail that were read before: the same bytes mean the same.

Runs in the untrusted host. A client sends the same head with every mail of one size;
the parser reads it once. Only heads of the plainest form are kept, in which every
grammar finds the same end, and only those that the parser and the connection took.

Spec: spec/http.md (HTTP-4).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from conclave.host.exchange import Headers

END: Final = b"\r\n\r\n"
MAX_SIZE: Final = 1024
MAX_KNOWN: Final = 256
# No byte that any parser could take for another end of a line.
_PLAIN: Final = re.compile(rb"POST /mail HTTP/1\.1\r\n(?:[!-9;-~]+: [!-~](?:[ -~]*[!-~])?\r\n)+\r\n")


class Head(NamedTuple):
    """What a head said: a POST of /mail by HTTP/1.1 that keeps its connection and brings `length` bytes."""

    headers: Headers
    length: int


class Heads:
    """The heads that one server has taken."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        # The head at the start of what came, if it was read before.
        self.find = self._known.get

    def learn(self, head: bytes, headers: Headers, length: int) -> None:
        """Keep a head that was taken, if it has the plain form."""
        if _PLAIN.fullmatch(head):
            if len(self._known) >= MAX_KNOWN:
                # Those in use are learned again at once.
                self._known.clear()
            self._known[head] = Head(headers, length)
