"""The same wallet without the bug: its balances are in the map, which is kept."""

from conclave.enclave import Enclave, rpc


class Wallet(Enclave):
    persistence = "code"

    @rpc
    def deposit(self, amount: int) -> int:
        balances, owner = self.map.of(int), self.sender.hex()
        balances[owner] = balances.get(owner, 0) + amount
        return balances[owner]

    @rpc
    def balance(self) -> int:
        return self.map.of(int).get(self.sender.hex(), 0)
