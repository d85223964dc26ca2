"""The enclave of the kill tests: whatever it does once too often, or not at all, its answers show."""

import asyncio
import hashlib
from collections.abc import Callable

from conclave.enclave import Enclave, Mail, RpcError, rpc

KEPT = 20


class Refused(RpcError):
    """Always."""


class Ledger(Enclave):
    """Counts what each name did, with a digest of all of it in order, and keeps the newest of it."""

    persistence = "code"
    # Told when a boot has come as far as the author's code.
    started: Callable[[], None] = staticmethod(lambda: None)

    def on_start(self) -> None:
        self.started()
        self.map.of(int)["boots"] = self.map.of(int).get("boots", 0) + 1

    def _count(self, name: str, number: int, filler: bytes = b"") -> list[int | bytes]:
        heads, entries = self.map.of(list), self.map.of(list)
        count, digest = heads.get(f"head/{name}", [0, b""])
        entries[f"entry/{name}/{count:09d}"] = [number, filler]
        if count >= KEPT:
            del entries[f"entry/{name}/{count - KEPT:09d}"]
        heads[f"head/{name}"] = [count + 1, hashlib.sha256(digest + number.to_bytes(8, "big")).digest()]
        return [count, heads[f"head/{name}"][1]]

    @rpc
    def add(self, name: str, number: int, filler: bytes) -> list[int | bytes]:
        """Where it stands in what this name added, the digest of all that, and the number of all additions."""
        counts = self.map.of(int)
        counts["total"] = counts.get("total", 0) + 1
        return [*self._count(name, number, filler), counts["total"]]

    @rpc
    def put(self, name: str, number: int, filler: bytes) -> None:
        """For those who only write."""
        self._count(name, number, filler)

    @rpc
    async def move(self, name: str, number: int, source: int, target: int, amount: int) -> int:
        """Others run meanwhile, and read what this changes."""
        accounts = self.map.of(int)
        had = accounts.get(f"account/{source}", 0)
        await asyncio.sleep(0)
        accounts[f"account/{source}"] = had - amount
        accounts[f"account/{target}"] = accounts.get(f"account/{target}", 0) + amount
        moved = accounts.get(f"moved/{name}", 0)
        await asyncio.sleep(0)
        accounts[f"moved/{name}"] = moved + 1
        sums = self.map.of(bytes)
        before = int.from_bytes(sums.get(f"sum/{name}", b""), "big")
        digest = int.from_bytes(hashlib.sha256(number.to_bytes(8, "big")).digest(), "big")
        sums[f"sum/{name}"] = ((before + digest) % 2**256).to_bytes(32, "big")
        return moved

    @rpc
    def fail(self, name: str, number: int) -> None:
        """What it changed is forgotten."""
        self._count(name, number)
        raise Refused(f"number {number}")

    @rpc
    def tell(self, name: str, number: int) -> int:
        """A mail posted with the count, or neither."""
        count = self._count(name, number)[0]
        assert isinstance(count, int)
        self.post(self.sender, f"{count} {number}".encode())
        return count

    def on_mail(self, mail: Mail) -> bytes:
        name, number = mail.body.split()
        count, digest = self._count(name.decode(), int(number))
        mail.reply(str(count).encode())
        assert isinstance(digest, bytes)
        return digest

    @rpc
    def look(self, name: str) -> list[int | bytes | list[int]]:
        """Count, digest and the newest numbers of a name."""
        count, digest = self.map.of(list).get(f"head/{name}", [0, b""])
        return [count, digest, [entry[0] for _, entry in self.map.of(list).scan(f"entry/{name}/")]]

    @rpc
    def moves(self, name: str) -> list[int | bytes]:
        """How many moves there were, and the sum of their digests."""
        return [self.map.of(int).get(f"moved/{name}", 0), self.map.of(bytes).get(f"sum/{name}", b"")]

    @rpc
    def audit(self) -> list[int]:
        """All additions, the sum of all accounts, all boots, and the version."""
        counts = self.map.of(int)
        accounts = sum(amount for _, amount in counts.scan("account/"))
        return [counts.get("total", 0), accounts, counts.get("boots", 0), self.version]
