"""The SDK for relying parties."""

from conclave.client._hosts import ClientEvent
from conclave.client._streams import AsyncStream, Stream
from conclave.client.client import AsyncClient, Client
from conclave.client.core import ReceivedMail, Resumed
from conclave.client.identity import Identity

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ClientEvent",
    "Identity",
    "ReceivedMail",
    "Resumed",
    "Stream",
]
