"""Bundles: an author's program and everything it loads, in one measured file.

Names are loaded on first use: the enclave imports only `bundle.manifest`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conclave.bundle.archive import Bundle, read_bundle, unpack
    from conclave.bundle.builder import build, signing_request
    from conclave.bundle.keys import generate_key, load_signing_key
    from conclave.bundle.lockfile import lock
    from conclave.bundle.manifest import Manifest, parse_manifest

__all__ = [
    "Bundle",
    "Manifest",
    "build",
    "generate_key",
    "load_signing_key",
    "lock",
    "parse_manifest",
    "read_bundle",
    "signing_request",
    "unpack",
]

_PLACES = {
    "Bundle": "archive",
    "Manifest": "manifest",
    "build": "builder",
    "generate_key": "keys",
    "load_signing_key": "keys",
    "lock": "lockfile",
    "parse_manifest": "manifest",
    "read_bundle": "archive",
    "signing_request": "builder",
    "unpack": "archive",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value
