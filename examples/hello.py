"""The smallest enclave: it greets, and counts whom it greeted."""

from conclave.enclave import Enclave, rpc


class Hello(Enclave):
    def on_start(self) -> None:
        self.greeted = 0

    @rpc
    def greet(self, name: str) -> str:
        self.greeted += 1
        return f"Hello {name}, you are number {self.greeted}."
