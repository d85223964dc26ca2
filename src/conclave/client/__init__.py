"""The SDK for relying parties."""

from conclave._lazy import lazily
from conclave.client.client import AsyncClient, Client
from conclave.client.core import ReceivedMail
from conclave.client.identity import Identity

__all__ = ["AsyncClient", "AsyncMailTransport", "Client", "Identity", "MailTransport", "ReceivedMail"]

__getattr__ = lazily(__name__, {"AsyncMailTransport": "transport", "MailTransport": "transport"})
