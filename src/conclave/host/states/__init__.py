"""State stores: where a host keeps what its enclave commits, in order, and the snapshots that stand for it.

Runs in the untrusted host. A store is untrusted too: all that is kept in it is sealed.

Spec: spec/stores.md section 5.
"""

from conclave.host.states.memory import MemoryStates
from conclave.host.states.store import MAX_ITEM, NONE_YET, Item, Snapshot, StateStore, What

__all__ = ["MAX_ITEM", "NONE_YET", "Item", "MemoryStates", "Snapshot", "StateStore", "What"]
