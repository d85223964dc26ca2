# /// script
# requires-python = ">=3.11"
#
# [tool.conclave]
# product-id = 1
# roster = []
# quorum = 0
# ///
"""An opinion poll whose answers never leave, and whose result leaves once.

The operator could ask for the result after each voter: run one enclave for each, or
put back the state before, and make up the other answers. So only the roster votes,
and the result is told when a quorum of it has come back to one history that has all
of these votes.
"""

from dataclasses import dataclass

from conclave.enclave import Enclave, RpcError, rpc


@dataclass
class Result:
    yes: int
    no: int


class AlreadyVoted(RpcError):
    """One answer each."""


class TooLate(RpcError):
    """The poll is closed: its result was told."""


class Poll(Enclave):
    persistence = "code"

    @rpc
    def vote(self, yes: bool) -> None:
        self.roster.check(self.sender)
        votes, key = self.map.of(bool), f"vote/{self.sender.hex()}"
        if "closed" in self.map:
            raise TooLate("the poll is closed")
        if key in votes:
            raise AlreadyVoted("this member has voted")
        votes[key] = yes

    @rpc
    async def result(self) -> Result | None:
        """The result; None: ask again. It is told to whoever comes back often enough."""
        self.roster.check(self.sender)
        votes = [yes for _, yes in self.map.of(bool).scan("vote/")]
        if len(votes) < self.roster.quorum:
            return None
        closed = self.map.of(int)
        if "closed" not in closed:
            # From here on no vote is added. Members count who come back with this version or a later one.
            closed["closed"] = self.version
            return None
        await self.stable(closed["closed"])
        return Result(sum(votes), len(votes) - sum(votes))
