"""A wallet with a bug: what an enclave keeps is in its map, and this one has its balances in an attribute."""

from conclave.enclave import Enclave, rpc


class Wallet(Enclave):
    persistence = "code"

    def on_start(self) -> None:
        self.balances: dict[str, int] = {}

    @rpc
    def deposit(self, amount: int) -> int:
        owner = self.sender.hex()
        self.balances[owner] = self.balances.get(owner, 0) + amount
        return self.balances[owner]

    @rpc
    def balance(self) -> int:
        return self.balances.get(self.sender.hex(), 0)
