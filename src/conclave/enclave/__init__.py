"""The SDK for enclave authors."""

from conclave.enclave.sdk import Enclave, Mail, NotInRoster, Post, Roster, WrongInstance
from conclave.rpc.interface import RpcError, rpc

__all__ = ["Enclave", "Mail", "NotInRoster", "Post", "Roster", "RpcError", "WrongInstance", "rpc"]
