"""The whole error tree, grouped by what a caller can do about it.

Runs everywhere. Messages are safe to log: they hold fields, codes and public
sizes, never plaintext, keys or text that a peer supplied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


class Error(Exception):
    """Base of every error this package raises on purpose.

    `code` is stable: the group's, or a finer one where spec/evidence.md lists it.
    """

    code = "error"

    def __init__(self, message: str = "", *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class FormatError(Error):
    """Bytes or text that do not parse; nothing was verified."""

    code = "format"


class VerificationError(Error):
    """Parsed, but not authentic, not fresh or not bound to what it claims."""

    code = "verification"


class SignatureError(VerificationError):
    """A signature does not verify."""

    code = "signature"


class ChainError(VerificationError):
    """A certificate chain does not lead to the trust anchor."""

    code = "chain"


class ExpiredError(VerificationError):
    """Endorsements, certificates or lists are not valid at this time."""

    code = "expired"


class RevokedError(VerificationError):
    """The vendor revoked the platform or its key."""

    code = "revoked"


class BindingError(VerificationError):
    """Evidence is genuine but belongs to another bundle or other keys."""

    code = "binding"


class AppraisalError(Error):
    """Authentic, but the constraint refuses it. `failures` lists every reason."""

    code = "appraisal"

    def __init__(self, failures: tuple[str, ...]) -> None:
        self.failures = failures
        super().__init__("the constraint refuses this enclave:\n  " + "\n  ".join(failures))


class MailError(Error):
    """A mail that cannot be accepted."""

    code = "mail"


class DecryptionError(MailError):
    """The mail is not authentic for this session. Says nothing more on purpose."""

    code = "decryption"

    def __init__(self, message: str = "the mail could not be decrypted") -> None:
        super().__init__(message)


class SequenceError(MailError):
    """A mail out of order, repeated with other contents, or after a gap."""

    code = "sequence"

    def __init__(self, *, expected: int, got: int) -> None:
        self.expected = expected
        self.got = got
        super().__init__(f"mail out of order: expected sequence {expected}, got {got}")


class SessionError(MailError):
    """The receiver does not know the session, or it is spent."""

    code = "session"


class OverloadedError(MailError):
    """A bound of the enclave is reached; acknowledge replies or try later.

    `clients`: where mail was to be posted, the public keys of those who have no room for it.
    """

    code = "overloaded"

    def __init__(self, message: str = "", *, clients: tuple[bytes, ...] = ()) -> None:
        self.clients = clients
        super().__init__(message)


class StateError(Error):
    """Persistent state cannot be used."""

    code = "state"


class RollbackError(StateError):
    """The host presented an older or another history.

    `evidence`: what the enclave signed about it, as `conclave.client.SignedStatement`: none, one or two, each of
    which others can verify by themselves.
    """

    code = "rollback"

    def __init__(self, message: str = "", *, evidence: tuple[Any, ...] = ()) -> None:
        self.evidence = evidence
        super().__init__(message)


class LogReplaced(StateError):
    """The enclave has another log than the one this client knew: its state was lost, or taken away.

    `old`, `new`: the log ids, 32 bytes each. Nothing was sent to the new one; a client goes on by its owner's consent.
    """

    code = "log-replaced"

    def __init__(self, message: str, *, old: bytes, new: bytes) -> None:
        self.old = old
        self.new = new
        super().__init__(message)


class WrongKeyError(StateError):
    """State sealed under a key this enclave does not have."""

    code = "wrong-key"


class BundleError(Error):
    """Archive, manifest, lock or signature of a bundle."""

    code = "bundle"


class CallError(Error):
    """The author's code refused or failed.

    `type_name` is the name of a declared `RpcError` subclass, or "error" for
    everything else, whose message stays inside the enclave.
    """

    code = "call"

    def __init__(self, type_name: str, message: str) -> None:
        self.type_name = type_name
        super().__init__(message)


class TransportError(Error):
    """Network or host trouble; trying again is sensible."""

    code = "transport"


class StreamError(TransportError):
    """A stream broke off: truncated, given up by the other end, or silent for too long.

    Streams are never retried: what was sent may have been handled, in part or whole.
    """

    code = "stream"


class StoreError(TransportError):
    """A blob store of the host failed."""

    code = "store"


class StoreConflict(StoreError):
    """The blob is not, or no longer, the one that the writer expected; read it again."""

    code = "store-conflict"


class StoreFull(StoreError):
    """The store has no room: a full disk, a quota, a full database. Nothing was written."""

    code = "store-full"


class StoreUnavailable(StoreError):
    """The store is gone, refuses, or did not answer in time. Whether a write happened is unknown."""

    code = "store-unavailable"


class StoreDamaged(StoreError):
    """What lies on the store is not what was written there, or some of it is missing. It is left as it is."""

    code = "store-damaged"


class PlatformError(Error):
    """The TEE is missing, refuses, or cannot isolate the enclave."""

    code = "platform"


class UnsupportedPolicy(PlatformError):
    """This TEE cannot bind a sealing key to that policy; that takes a key derivation service (KDS)."""

    code = "unsupported-policy"
