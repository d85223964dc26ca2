"""What has to hold for owners: every deposit that was confirmed is there, and none is there twice."""

from conclave.testing import Attack

AMOUNT = 10


def workload(attack: Attack) -> None:
    confirmed = {"alice": 0, "bob": 0}
    unknown = {"alice": 0, "bob": 0}
    for _ in range(3):
        for name in confirmed:
            owner = attack.client(name)
            deposit = attack.attempt(owner.call, "deposit", AMOUNT)
            confirmed[name] += AMOUNT * deposit.confirmed
            unknown[name] += AMOUNT * deposit.unknown
            balance = attack.attempt(owner.call, "balance")
            if balance.confirmed:
                least, most = confirmed[name], confirmed[name] + unknown[name]
                assert least <= balance.value <= most, f"{name} has {balance.value}, and put in {least} to {most}"
