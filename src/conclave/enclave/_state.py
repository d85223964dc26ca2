"""The state of one boot: transactions, one record for each batch, contexts, and what happens on a rollback.

Runs inside the enclave. What the host stored is hostile until it authenticates.

Spec: spec/state.md.
"""
