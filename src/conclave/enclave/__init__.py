"""The SDK for enclave authors."""

from conclave.enclave.sdk import Caller, Enclave, Mail, NotInRoster, NotIntroduced, Roster, WrongInstance
from conclave.rpc.interface import RpcError, rpc

__all__ = ["Caller", "Enclave", "Mail", "NotInRoster", "NotIntroduced", "Roster", "RpcError", "WrongInstance", "rpc"]
