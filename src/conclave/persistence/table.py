"""An ordered table with snapshot reads and optimistic transactions.

Pure.
"""
