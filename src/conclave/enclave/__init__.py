"""The SDK for enclave authors."""

from conclave.enclave.sdk import Caller, Enclave, Mail, NotInRoster, NotIntroduced, Post, Roster, WrongInstance
from conclave.mail.padding import Padding, buckets, fixed, padme
from conclave.rpc.interface import RpcError, rpc

__all__ = [
    "Caller",
    "Enclave",
    "Mail",
    "NotInRoster",
    "NotIntroduced",
    "Padding",
    "Post",
    "Roster",
    "RpcError",
    "WrongInstance",
    "buckets",
    "fixed",
    "padme",
    "rpc",
]
