"""Sealed state of one log: records, snapshots, the map, contexts by which clients catch a rollback, and anchors.

Pure. Used by enclaves; of it clients use `context` and `witness` alone. Names are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from conclave._lazy import lazily

if TYPE_CHECKING:
    from conclave.persistence.witness import Anchor, Countersignature

__all__ = ["Anchor", "Countersignature"]

__getattr__ = lazily(__name__, {"Anchor": "witness", "Countersignature": "witness"})
