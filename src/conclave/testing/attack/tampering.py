"""What an operator can do to the bytes of one mail or one answer.

For tests. Pure, but for chance: it takes bytes that pass, and gives others with
what was done in words.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from conclave._mailheader import HEADER, parse_mail
from conclave.errors import FormatError
from conclave.testing.attack.schedule import Step

_SESSION: Final = slice(8, 24)


class Tampering:
    """Everything that went by in one run, and what can be made of it.

    Attributes:
        requests: mails of clients, each with its sender.
        answers: bodies of answers, each with the client it was for.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.answers: list[tuple[str, bytes]] = []

    def older(self, step: Step) -> tuple[list[bytes], str]:
        """Mails that are given to the enclave once more."""
        if not self.requests:
            return [], "wanted to repeat an earlier mail, and had none"
        if step.variant == "all":
            return [body for _, body in self.requests], "gave the enclave all earlier mails once more, before this one"
        whose, body = self.requests[-1 - step.number % len(self.requests)]
        return [body], f"gave the enclave an earlier mail of {whose} once more, before this one"

    def request(self, step: Step, client: str, body: bytes) -> tuple[bytes, str]:
        """What the enclave gets in place of a mail."""
        if step.action == "truncate":
            return body[: step.number % max(len(body), 1)], "cut the mail short"
        if step.action == "garbage":
            return os.urandom(1 + step.number), "gave the enclave random bytes in place of the mail"
        if step.action == "cross-wire":
            session = self._session_of_another(client)
            if session is not None:
                changed = body[: _SESSION.start] + session + body[_SESSION.stop :]
                return changed, "gave the mail to the enclave as one of another client's session"
        return _flipped(body, step.number), "changed one bit of the mail"

    def answer(self, step: Step, client: str, answer: bytes) -> tuple[bytes, str]:
        """What the client gets in place of an answer."""
        if step.action == "truncate":
            return answer[: step.number % max(len(answer), 1)], "cut the enclave's answer short"
        if step.action == "alter":
            return _flipped(answer, step.number), "changed one bit of the enclave's answer"
        if step.action == "garbage":
            return os.urandom(1 + step.number), "answered with random bytes"
        others = step.action == "cross-wire"
        known = [body for whose, body in self.answers if (whose != client) is others and body != answer]
        if not known:
            return b"", "gave an empty answer, having no other one to give"
        what = "an answer for another client" if others else "an older answer for the same client"
        return known[-1 - step.number % len(known)], f"gave the client {what}, in place of its own"

    def _session_of_another(self, client: str) -> bytes | None:
        for whose, body in reversed(self.requests):
            if whose != client and len(body) >= HEADER.size:
                with suppress(FormatError):
                    return parse_mail(body).session_id
        return None


def _flipped(data: bytes, at: int) -> bytes:
    at %= max(len(data), 1)
    return data[:at] + bytes(byte ^ 1 for byte in data[at : at + 1]) + data[at + 1 :]
