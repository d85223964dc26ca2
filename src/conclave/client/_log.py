"""What a client knows of the enclave's log, and what it does when a host shows it another one.

Runs at the relying party, without IO. A log is pinned with the first instance that
was verified; from then on the newest state context goes along with every mail, and
whatever contradicts it ends the work with that boot.

Spec: spec/mail.md section 13 (MAIL-62, MAIL-63, MAIL-66 to MAIL-70).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from conclave import _codec
from conclave.attestation import AttestationResult, InstanceClaims
from conclave.errors import FormatError, LogReplaced, RollbackError, SignatureError, StateError
from conclave.mail._wire import Reply, ReplyKind
from conclave.mail.contexts import Contexts

if TYPE_CHECKING:
    # Not loaded where there is no state: in an enclave that calls another.
    from conclave.client._state import ClientState
    from conclave.persistence.context import SignedStatement, Statement

LOG_ID_SIZE: Final = 32
# In an error's place of a log id: that enclave keeps no state.
NO_LOG: Final = bytes(LOG_ID_SIZE)
_SIGNATURE_SIZE: Final = 64
MAX_SAVED: Final = 1024 * 1024

T = TypeVar("T")


def history_id(claims: InstanceClaims) -> bytes:
    """What channels and numbers belong to: the log, or the boot of an enclave that has none."""
    return claims.log_id or claims.boot_nonce


def check_log_id(log_id: bytes | None) -> bytes | None:
    """The same. Raises ValueError if it is none."""
    if log_id is not None and len(log_id) != LOG_ID_SIZE:
        raise ValueError(f"a log id has {LOG_ID_SIZE} bytes: give LogReplaced.new, or what the operator said")
    return log_id


class _Saved(_codec.Record, frozen=True):
    """A signed statement in saved state."""

    encoded: bytes
    signature: bytes
    claims_digest: bytes
    instance_info: bytes


class KnownLog:
    """One client's view of one enclave's log.

    Attributes:
        accepted: another log that its owner consented to.
        statement: the newest that an instance of this log signed; None if none is known.
        refused: how often the enclave signed something that is no statement on this log.
    """

    def __init__(self, state: ClientState | None, accepted: bytes | None) -> None:
        """Go on with what was saved, or begin. Raises FormatError."""
        self._state = state
        self._log = (state.log if state is not None else b"") or None
        self.accepted = check_log_id(accepted)
        self.contexts = Contexts(state.contexts if state is not None else b"")
        self.statement: SignedStatement | None = None
        self.refused = 0
        # The boot that a contradiction was found in, and how it is told.
        self._bad_boot = b""
        self._reason = ""
        self._evidence: tuple[SignedStatement, ...] = ()
        if state is not None and state.statement:
            self.statement = _restore(state.statement)

    # Which log ------------------------------------------------------------------------

    def admit(self, claims: InstanceClaims) -> None:
        """Go no further with an instance of another log.

        Raises:
            LogReplaced: nobody consented to that one.
        """
        old, new = self._log, claims.log_id or NO_LOG
        if old is None or new in (old, self.accepted):
            return
        what = "keeps no state" if new == NO_LOG else f"has another log, {new.hex()}"
        raise LogReplaced(
            f"this client worked with log {old.hex()}, and the enclave {what}: the state that this client knows was "
            "lost, or is kept from it. Nothing was sent. If its operator can say why, consent to exactly this one: "
            "client.accept_log(error.new), or accept_log= for a new client",
            old=old,
            new=new,
        )

    def pin(self, claims: InstanceClaims) -> None:
        """This is the log from now on. Of another one nothing is known."""
        if claims.log_id != self._log:
            self._log = claims.log_id
            self.contexts, self.statement = Contexts(), None
            if self._state is not None:
                self._state.pin(claims.log_id or b"")
        if claims.boot_nonce != self._bad_boot:
            self._bad_boot = b""

    # Contradictions -------------------------------------------------------------------

    @property
    def broken(self) -> bool:
        """Whether the boot that was verified last is one that nothing is sent to."""
        return bool(self._bad_boot)

    def demand(self) -> None:
        """Raises RollbackError: nothing is sent to this boot any more."""
        if self._bad_boot:
            raise RollbackError(self._reason, evidence=self._evidence)

    def watch(self, instance: AttestationResult, work: Callable[[], T]) -> T:
        """Do what takes the word of an instance; if it contradicts itself, that boot is done with.

        Raises:
            RollbackError: it does, with whatever evidence there is.
        """
        try:
            result = work()
        except RollbackError as error:
            self._break(instance, str(error), error.evidence)
            self.demand()
            raise
        if self._state is not None and self._log is not None:
            # Goes with the next record.
            self._state.contexts = self.contexts.saved
        return result

    def hear(self, instance: AttestationResult, info: bytes, reply: Reply) -> None:
        """A statement that an instance signed, beside its answers or in their place.

        Raises:
            RollbackError: it stopped, as a client knows what its history lacks.
        """
        from conclave.persistence.context import SignedStatement

        signature, encoded = reply.body[:_SIGNATURE_SIZE], reply.body[_SIGNATURE_SIZE:]
        signed = SignedStatement(encoded, signature, instance.claims_digest, info)
        try:
            said = signed.verify(instance.claims.signing_key)
            refuses = said.refused_version is not None
            if said.log_id != instance.claims.log_id or refuses != (reply.kind == ReplyKind.HALTED):
                raise FormatError("a statement on something else")
        except (FormatError, SignatureError):
            self.refused += 1
            return
        if reply.kind == ReplyKind.STATEMENT:
            if said.log_id == self._log:
                self._keep(signed, said)
            return
        raise RollbackError(
            f"this enclave was rolled back or forked: it has version {said.state_version} of its state, and was shown, "
            f"by a client or a witness, a genuine version {said.refused_version} that its history lacks. It stopped, "
            "and says so under its signing key",
            evidence=(signed,),
        )

    def learn(self, claims: InstanceClaims, context: bytes) -> None:
        """The context that came with posted mail of this log. Raises RollbackError."""
        if context and claims.log_id == self._log:
            self.contexts.take(context, instance=claims.digest())

    def _break(self, instance: AttestationResult, reason: str, evidence: tuple[SignedStatement, ...]) -> None:
        if self._bad_boot == instance.claims.boot_nonce:
            return
        if self.statement is not None and self.statement not in evidence:
            evidence = (*evidence, self.statement)
        have = {
            0: "No signed statement is at hand: this client's word stands against the host's",
            1: "One signed statement is at hand (.evidence)",
        }.get(len(evidence), f"{len(evidence)} signed statements are at hand (.evidence)")
        if evidence and not any(signed.statement.refused_version is not None for signed in evidence):
            have += ", of what the enclave said before; none that the enclave itself refuses what this client knows"
        self._bad_boot, self._evidence = instance.claims.boot_nonce, evidence
        self._reason = (
            f"{reason}. {have}. Send nothing more to this host, keep this error's evidence, and tell the other "
            "clients; whatever is unanswered may or may not be in the state that the operator comes back with"
        )

    def _keep(self, signed: SignedStatement, said: Statement) -> None:
        if self.statement is not None:
            before = self.statement.statement
            if before.state_version > said.state_version:
                return
            if before.state_version == said.state_version and (before.boot, before.digest) != (said.boot, said.digest):
                raise RollbackError(
                    f"there are two histories of this enclave's state: it signed two different versions "
                    f"{said.state_version} of one log",
                    evidence=(signed, self.statement),
                )
        self.statement = signed
        if self._state is not None:
            saved = _Saved(
                encoded=signed.encoded,
                signature=signed.signature,
                claims_digest=signed.claims_digest,
                instance_info=signed.instance_info,
            )
            with suppress(StateError):
                self._state.keep_statement(_codec.encode(saved))


def _restore(data: bytes) -> SignedStatement:
    from conclave.persistence.context import SignedStatement

    saved = _codec.decode(_Saved, data, max_size=MAX_SAVED, what="saved statement")
    return SignedStatement(saved.encoded, saved.signature, saved.claims_digest, saved.instance_info)
