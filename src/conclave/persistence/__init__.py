"""Sealed state of one log: records, snapshots, the map, and contexts by which clients catch a rollback.

Pure. Used by enclaves; of it clients use `context` alone.
"""
