"""Bundles: an author's program and everything it loads, in one measured file.

Names are loaded on first use: the enclave imports only `bundle.manifest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily

if TYPE_CHECKING:
    from conclave.bundle.archive import Bundle, read_bundle, unpack
    from conclave.bundle.builder import build, signing_request
    from conclave.bundle.keys import generate_key, load_signing_key
    from conclave.bundle.lockfile import lock
    from conclave.bundle.manifest import Manifest, parse_manifest
    from conclave.bundle.rebuild import reproduce

__all__ = [
    "Bundle",
    "Manifest",
    "build",
    "generate_key",
    "load_signing_key",
    "lock",
    "parse_manifest",
    "read_bundle",
    "reproduce",
    "signing_request",
    "unpack",
]

__getattr__ = lazily(
    __name__,
    {
        "Bundle": "archive",
        "Manifest": "manifest",
        "build": "builder",
        "generate_key": "keys",
        "load_signing_key": "keys",
        "lock": "lockfile",
        "parse_manifest": "manifest",
        "read_bundle": "archive",
        "reproduce": "rebuild",
        "signing_request": "builder",
        "unpack": "archive",
    },
)
