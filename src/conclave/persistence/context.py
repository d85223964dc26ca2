"""State contexts, the table of boots that they are checked against, and signed statements.

Pure.

Spec: spec/state.md.
"""
