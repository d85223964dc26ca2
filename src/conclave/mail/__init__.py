"""Encrypted, ordered, padded messages, as state machines without IO."""

from conclave._mailheader import MAX_ENVELOPE, MAX_MAIL, EncryptedMail, parse_mail
from conclave.mail._wire import MAX_BODY, Reply, ReplyKind, Request, RequestKind
from conclave.mail.conversation import Conversation, Pending
from conclave.mail.mailbox import Bounds, Channel, Mailbox, Opened, Outcome, Received
from conclave.mail.padding import Padding, buckets, fixed, padme
from conclave.mail.session import ClientSession, EnclaveSession

__all__ = [
    "MAX_BODY",
    "MAX_ENVELOPE",
    "MAX_MAIL",
    "Bounds",
    "Channel",
    "ClientSession",
    "Conversation",
    "EnclaveSession",
    "EncryptedMail",
    "Mailbox",
    "Opened",
    "Outcome",
    "Padding",
    "Pending",
    "Received",
    "Reply",
    "ReplyKind",
    "Request",
    "RequestKind",
    "buckets",
    "fixed",
    "padme",
    "parse_mail",
]
