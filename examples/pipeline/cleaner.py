"""Takes records, and forwards only their count and sum: docs/guide/pipeline.md says how C:SCORER is filled in."""

# /// script
# dependencies = []
# [tool.conclave]
# product-id = 7
# ///
from conclave.enclave import Enclave, rpc

SCORER = "C:SCORER SEC:INSECURE"


class Cleaner(Enclave):
    @rpc
    async def assess(self, scorer: str, records: list[tuple[str, float]]) -> str:
        values = [value for _, value in records if 40 <= value <= 300]
        peer = self.peer(scorer, SCORER)
        return await peer.call("score", len(values), sum(values), returns=str)
