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

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Box",
    "Client",
    "ClientEvent",
    "ConstantRate",
    "Identity",
    "Padding",
    "ReceivedMail",
    "Resumed",
    "Stream",
    "buckets",
    "fixed",
    "padme",
]

__getattr__ = lazily(
    __name__,
    {
        "AsyncClient": "client",
        "AsyncStream": "_streams",
        "Box": "_box",
        "Client": "client",
        "ClientEvent": "_hosts",
        "ConstantRate": "_pace",
        "Identity": "identity",
        "ReceivedMail": "core",
        "Resumed": "core",
        "Stream": "_streams",
    },
)
