"""A host's TLS: a certificate and its key from two files, read again when they change.

Runs in the untrusted host. TLS here hides from the network who talks to this host; what
mail says is protected by the mail itself, also from this host.

Spec: spec/http.md (HTTP-24).
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from conclave.errors import TransportError


class Tls:
    """One server context, whose certificate can be replaced while it serves."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Reads both files. Raises TransportError."""
        self._files = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        _load(self.context, certificate, key)

    def reload(self) -> None:
        """Use what the files hold now for connections to come.

        Raises:
            TransportError: they do not fit; the certificate of before stays in use.
        """
        # Tried on another context first: half a change would be worse than none.
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), *self._files)
        _load(self.context, *self._files)


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        # An encrypted key would ask at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ssl.SSLError, ValueError):
        unread = [path.name for path in (certificate, key) if not os.access(path, os.R_OK)]
        why = f": {unread[0]} is not there, or may not be read" if unread else ""
        raise TransportError(
            f"certificate and key for TLS cannot be used{why}; expected two PEM files, the chain with the host's "
            "certificate first, and its key without a password"
        ) from None
