"""What many sessions cost an enclave: the oldest make room, those not in use take less."""

from __future__ import annotations

import pytest

from conclave._crypto import DecryptionKey, SigningKey, random_bytes
from conclave.errors import SessionError
from conclave.mail import Bounds, ClientSession, Mailbox, Outcome, Request, RequestKind

_REPLY_KEY = DecryptionKey.generate().public


class Enclave:
    def __init__(self, **bounds: int) -> None:
        self.key = DecryptionKey.generate()
        self.digest = random_bytes(64)
        self.mailbox = Mailbox(key=self.key, claims_digest=self.digest, bounds=Bounds(**bounds))
        self.route = 0

    def session(self) -> ClientSession:
        return ClientSession(
            claims_digest=self.digest,
            encryption_key=self.key.public,
            identity=SigningKey.generate(),
            reply_key=_REPLY_KEY,
            topic="default",
        )

    def send(self, session: ClientSession, sequence: int) -> Outcome:
        self.route += 1
        return self.mailbox.receive(
            session.encrypt(Request(RequestKind.CALL, 0, sequence, 0, b"x")), self.route
        ).outcome


@pytest.mark.spec("MAIL-13")
def test_a_session_above_the_bound_ends_the_oldest() -> None:
    enclave = Enclave(sessions=3)
    sessions = [enclave.session() for _ in range(4)]
    for session in sessions[:3]:
        assert enclave.send(session, 0) is Outcome.RUN
    # The third is in its place yet.
    assert enclave.send(sessions[0], 1) is Outcome.RUN
    assert enclave.send(sessions[3], 0) is Outcome.RUN
    with pytest.raises(SessionError):
        enclave.send(sessions[0], 2)
    for session in sessions[1:]:
        assert enclave.send(session, 1) is Outcome.RUN


def test_keys_that_are_not_in_use_rest_and_wake() -> None:
    enclave = Enclave(awake=2)
    sessions = [enclave.session() for _ in range(5)]
    for sequence in range(3):
        for session in sessions:
            assert enclave.send(session, sequence) is Outcome.RUN
            ends = [end for end, _ in enclave.mailbox._sessions.values()]
            assert sum(end.awake for end in ends) <= 2
            # What counts as resting holds no expanded key.
            assert all(end.awake or end._receive._aead is None for end in ends)
    assert len(enclave.mailbox._awake) == 2
