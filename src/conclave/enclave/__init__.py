"""The SDK for enclave authors."""

from conclave.enclave._roster import ComeBack, NotInRoster, Roster, WrongInstance, WrongRoster
from conclave.enclave.sdk import Caller, Enclave, Mail, NotIntroduced, Post
from conclave.mail.padding import Padding, buckets, fixed, padme
from conclave.rpc.interface import RpcError, rpc

__all__ = [
    "Caller",
    "ComeBack",
    "Enclave",
    "Mail",
    "NotInRoster",
    "NotIntroduced",
    "Padding",
    "Post",
    "Roster",
    "RpcError",
    "WrongInstance",
    "WrongRoster",
    "buckets",
    "fixed",
    "padme",
    "rpc",
]
