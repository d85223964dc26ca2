"""The SDK for relying parties."""

from conclave._lazy import lazily
from conclave.client._hosts import ClientEvent
from conclave.client._streams import AsyncStream, Stream
from conclave.client.client import AsyncClient, Client
from conclave.client.core import ReceivedMail
from conclave.client.identity import Identity

__all__ = [
    "AsyncClient",
    "AsyncMailTransport",
    "AsyncStream",
    "Client",
    "ClientEvent",
    "Identity",
    "MailTransport",
    "ReceivedMail",
    "Stream",
]

__getattr__ = lazily(__name__, {"AsyncMailTransport": "transport", "MailTransport": "transport"})
