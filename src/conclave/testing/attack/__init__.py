"""Hostile hosts for authors of enclaves: schedules of what an operator does, held against what must hold.

For tests. `conclave attack` and `conclave.testing.attack_fixture` are built from it.
"""
