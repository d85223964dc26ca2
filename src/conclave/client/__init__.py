"""The SDK for relying parties."""

from conclave.client._box import Box
from conclave.client._hosts import ClientEvent
from conclave.client.client import AsyncClient, Client
from conclave.client.core import ReceivedMail
from conclave.client.identity import Identity

__all__ = ["AsyncClient", "Box", "Client", "ClientEvent", "Identity", "ReceivedMail"]
