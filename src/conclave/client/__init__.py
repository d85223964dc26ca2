"""The SDK for relying parties.

Names are loaded on first use: an enclave that calls others has the core, and no HTTP library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily
from conclave.mail.padding import Padding, buckets, fixed, padme

if TYPE_CHECKING:
    from conclave.client._box import Box
    from conclave.client._hosts import ClientEvent
    from conclave.client._pace import ConstantRate
    from conclave.client._streams import AsyncStream, Stream
    from conclave.client.client import AsyncClient, Client
    from conclave.client.core import ReceivedMail, Resumed
    from conclave.client.identity import Identity
    from conclave.client.transport import AsyncMailTransport, MailTransport
    from conclave.persistence.context import SignedStatement

__all__ = [
    "AsyncClient",
    "AsyncMailTransport",
    "AsyncStream",
    "Box",
    "Client",
    "ClientEvent",
    "ConstantRate",
    "Identity",
    "MailTransport",
    "Padding",
    "ReceivedMail",
    "Resumed",
    "SignedStatement",
    "Stream",
    "buckets",
    "fixed",
    "padme",
]

__getattr__ = lazily(
    __name__,
    {
        "AsyncClient": "client",
        "AsyncMailTransport": "transport",
        "AsyncStream": "_streams",
        "Box": "_box",
        "Client": "client",
        "ClientEvent": "_hosts",
        "ConstantRate": "_pace",
        "Identity": "identity",
        "MailTransport": "transport",
        "ReceivedMail": "core",
        "Resumed": "core",
        "SignedStatement": ".persistence.context",
        "Stream": "_streams",
    },
)
