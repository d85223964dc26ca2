"""Typed calls over mail."""

from conclave.rpc.interface import Interface, Method, RpcError, interface_digest, interface_of, rpc

__all__ = ["Interface", "Method", "RpcError", "interface_digest", "interface_of", "rpc"]
