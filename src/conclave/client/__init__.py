"""The SDK for relying parties."""

from conclave.client._hosts import ClientEvent
from conclave.client._pace import ConstantRate
from conclave.client._streams import AsyncStream, Stream
from conclave.client.client import AsyncClient, Client
from conclave.client.core import ReceivedMail
from conclave.client.identity import Identity
from conclave.mail.padding import Padding, buckets, fixed, padme

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "ClientEvent",
    "ConstantRate",
    "Identity",
    "Padding",
    "ReceivedMail",
    "Stream",
    "buckets",
    "fixed",
    "padme",
]
