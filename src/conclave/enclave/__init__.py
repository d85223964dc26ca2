"""The SDK for enclave authors."""

from conclave.enclave.sdk import Enclave, Mail, NotInRoster, Roster, WrongInstance
from conclave.mail.padding import Padding, buckets, fixed, padme
from conclave.rpc.interface import RpcError, rpc

__all__ = [
    "Enclave",
    "Mail",
    "NotInRoster",
    "Padding",
    "Roster",
    "RpcError",
    "WrongInstance",
    "buckets",
    "fixed",
    "padme",
    "rpc",
]
