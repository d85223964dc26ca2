"""One log in the enclave: what the host stored comes in, sealed records and snapshots go out.

Pure. Everything that was stored is the host's, and hostile until it authenticates.

Spec: spec/state.md.
"""
