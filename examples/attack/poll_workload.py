"""What has to hold for the voters: a vote that was confirmed is in every result."""

from conclave.testing import Attack

VOTERS = {"alice": "yes", "bob": "no", "carol": "yes"}


def workload(attack: Attack) -> None:
    counted = 0
    for name, choice in VOTERS.items():
        voter = attack.client(name)
        if attack.attempt(voter.verify).confirmed:
            vote = attack.attempt(voter.call, "vote", choice, voter.instance.claims_digest)
            counted += vote.confirmed
        result = attack.attempt(voter.call, "result")
        if result.confirmed:
            told = sum(result.value.values())
            assert told >= counted, f"{counted} votes were confirmed, and the result has {told}"


def check(attack: Attack) -> None:
    results = [attack.attempt(attack.client(name).call, "result") for name in VOTERS]
    told = [result.value for result in results if result.confirmed]
    assert all(value == told[0] for value in told), f"voters were told different results: {told}"
