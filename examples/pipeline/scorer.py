# ruff: noqa: RUF012
"""Takes aggregates from the cleaner, and from nobody else: docs/guide/pipeline.md says how S:AUTHOR is filled in."""

from conclave.enclave import Enclave, rpc


class Scorer(Enclave):
    callers = {"cleaner": "S:AUTHOR PROD:7 SEC:INSECURE"}

    @rpc(callers="cleaner")
    def score(self, count: int, total: float) -> str:
        mean = total / count if count else 0.0
        return "high" if mean > 130 else "normal"
