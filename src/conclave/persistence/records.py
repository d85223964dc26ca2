"""Layout and sealing of the records of a log.

Pure.

Spec: spec/state.md.
"""
