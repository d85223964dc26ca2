"""Rollback and fork detection, proved by trying every schedule of a small world.

Standard library only. Not part of the package.

Spec: spec/state-detection.md.
"""
