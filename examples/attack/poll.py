"""A poll with a bug: two votes are enough for it, whoever else voted elsewhere."""

# /// script
# [tool.conclave]
# roster = [
#     "d6498057dfbc3b83f02a0992c8094525405781742db664f24b800a5f1b30d7c7",  # alice
#     "0e3bc5c5db53702133c757f562797097c614ac64e7d005dd68b845f18d4143e0",  # bob
#     "7f8eaa2ac462d51cf6c4cbb5662435834cf70c81ca561c4e47a6abbda4a6cc70",  # carol
# ]
# ///

from collections import Counter

from conclave.enclave import Enclave, RpcError, rpc


class TooEarly(RpcError):
    """Not everybody has voted."""


class Poll(Enclave):
    def on_start(self) -> None:
        self.votes: dict[bytes, str] = {}

    @rpc
    def vote(self, choice: str, claims_digest: bytes) -> None:
        self.roster.acknowledge(self.sender, claims_digest)
        self.votes[self.sender] = choice

    @rpc
    def result(self) -> dict[str, int]:
        if len(self.votes) < 2:
            raise TooEarly("the result is told when everybody has voted")
        return dict(Counter(self.votes.values()))
