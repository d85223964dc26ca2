"""State that outlives its program: newer releases of one author go on with it, older ones and others do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.services.test_state import serving

from conclave._crypto import SigningKey, sha256
from conclave.bundle import Bundle, build
from conclave.client import Client, Identity
from conclave.errors import AppraisalError, PlatformError, RollbackError, TransportError

RELEASE = """# /// script
# [tool.conclave]
# product-id = {product}
# revocation-level = {level}
# ///
import asyncio

from conclave.enclave import Enclave, rpc


class Till(Enclave):
    persistence = "{policy}"

    @rpc
    def add(self, name: str, amount: int) -> int:
        counts = self.map.of(int)
        counts[name] = counts.get(name, 0) + amount
        return counts[name]

    @rpc
    async def slowly(self, name: str) -> str:
        self.add(name, 1)
        await asyncio.sleep(0.5)
        return "{name}"

    @rpc
    def tell(self, text: str) -> str:
        self.post(self.sender, text.encode())
        return "{name}"
"""
AUTHOR, STRANGER = SigningKey.generate(), SigningKey.generate()
Make = Callable[..., Bundle]
Disk = dict[str, bytes]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A release by its name, which is in its code."""

    def made(
        name: str, *, level: int, product: int = 7, policy: str = "signer", signing_key: SigningKey = AUTHOR
    ) -> Bundle:
        place = tmp_path / name
        place.mkdir()
        (place / "till.py").write_text(RELEASE.format(name=name, level=level, product=product, policy=policy))
        return build(place / "till.py", place / "till.enclave", mode="debug", signing_key=signing_key)

    return made


def client(url: str, identity: Identity, *, level: int = 0, state: Path | None = None) -> Client:
    """Whoever names the author and the product, and no exact code."""
    accepted = f"S:{sha256(AUTHOR.public).hex()} PROD:7 REVOKE:{level} SEC:INSECURE"
    return Client(url, constraint=accepted, identity=identity, state=state)


def disk(place: Path) -> Disk:
    """What is on it: every file that is not empty."""
    found = {str(path): path.read_bytes() for path in (place / "disk").rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if data}


def refused(bundle: Bundle, place: Path, why: str) -> None:
    """The start is refused, and costs nothing that is on the disk."""
    before = disk(place)
    assert before
    with pytest.raises(PlatformError, match=why), serving(bundle, place):
        pass
    assert disk(place) == before


@pytest.mark.spec("STATE-40", "STATE-32", "PLAT-3")
def test_a_newer_release_goes_on_and_the_older_one_does_not(make: Make, tmp_path: Path) -> None:
    old, new = make("first", level=1), make("second", level=2)
    assert old.code != new.code
    ada = Identity.generate()
    with serving(old, tmp_path) as server, client(server.url, ada) as c:
        assert c.call("add", "a", 1) == 1
    for turn in range(2):
        with serving(new, tmp_path) as server, client(server.url, ada) as c:
            assert c.call("add", "a", 1) == 2 + turn
            assert c.call("tell", "x") == "second"
    refused(old, tmp_path, r"written by revocation level 2.*this enclave has 1.*an older release never reads")
    with serving(new, tmp_path) as server, client(server.url, ada) as c:
        assert c.call("add", "a", 1) == 4


@pytest.mark.spec("STATE-40")
def test_a_release_of_the_same_level_goes_on_and_back_again(make: Make, tmp_path: Path) -> None:
    ada = Identity.generate()
    for turn, bundle in enumerate([make("first", level=1), make("fixed", level=1)] * 2, 1):
        with serving(bundle, tmp_path) as server, client(server.url, ada) as c:
            assert c.call("add", "a", 1) == turn


@pytest.mark.spec("STATE-40")
def test_levels_may_be_left_out(make: Make, tmp_path: Path) -> None:
    """From each level that wrote, boot after boot, the newest one reads."""
    ada = Identity.generate()
    releases = [make(f"release {level}", level=level, policy="product") for level in (0, 1, 4, 65534)]
    for turn, bundle in enumerate(releases, 1):
        with serving(bundle, tmp_path) as server, client(server.url, ada) as c:
            assert c.call("add", "a", 1) == turn
    for bundle in releases[:-1]:
        refused(bundle, tmp_path, "an older release never reads")


@pytest.mark.spec("STATE-40", "STATE-31")
def test_another_author_or_product_is_refused(make: Make, tmp_path: Path) -> None:
    ada = Identity.generate()
    with serving(make("first", level=1, policy="product"), tmp_path) as server, client(server.url, ada) as c:
        assert c.call("add", "a", 1) == 1
    why = "sealed under a key that this enclave does not have"
    refused(make("theirs", level=1, policy="product", signing_key=STRANGER), tmp_path, why)
    refused(make("theirs, newer", level=2, policy="product", signing_key=STRANGER), tmp_path, why)
    refused(make("another product", level=2, policy="product", product=8), tmp_path, why)
    refused(make("another policy", level=2, policy="signer"), tmp_path, why)
    refused(make("exact code", level=2, policy="code"), tmp_path, "binds it to exact code")
    with serving(make("second", level=2, policy="product"), tmp_path) as server, client(server.url, ada) as c:
        assert c.call("add", "a", 1) == 2


@pytest.mark.spec("STATE-40")
def test_with_signer_another_product_of_the_author_goes_on(make: Make, tmp_path: Path) -> None:
    accepted = f"S:{sha256(AUTHOR.public).hex()} PROD:7,8 SEC:INSECURE"
    with (
        serving(make("first", level=1), tmp_path) as server,
        Client(server.url, constraint=accepted.replace(",8", "")) as c,
    ):
        assert c.call("add", "a", 1) == 1
    with (
        serving(make("sister", level=2, product=8), tmp_path) as server,
        Client(server.url, constraint=accepted.replace("7,", "")) as c,
    ):
        assert c.call("add", "a", 1) == 2


@pytest.mark.spec("STATE-40", "MAIL-60")
def test_clients_notice_an_upgrade_by_what_they_get_alone(make: Make, tmp_path: Path) -> None:
    """The log, what they know of it, exactly once and posted mail go on; going back behind it is a rollback."""
    old, new = make("first", level=1), make("second", level=2)
    people = {name: Identity.generate() for name in ("ada", "bob")}

    def known(url: str, name: str, *, level: int = 0) -> Client:
        return client(url, people[name], level=level, state=tmp_path / name)

    with serving(old, tmp_path) as server, known(server.url, "ada") as c, known(server.url, "bob") as b:
        log = c.verify().claims.log_id
        assert c.call("add", "a", 1) == 1
        # Nobody has fetched it when the release changes.
        assert b.call("tell", "from the first") == "first"
        # The client is gone when the answer comes.
        with pytest.raises(TransportError):
            c.call("slowly", "a", timeout_seconds=0.2)
        c.close()
        while b.call("add", "a", 0) == 1:
            pass
    kept = disk(tmp_path)
    with serving(new, tmp_path) as server, known(server.url, "ada") as c, known(server.url, "bob") as b:
        instance = c.verify()
        assert instance.claims.log_id == log
        assert instance.claims.revocation_level == 2
        # What the first one did is not done again: its answer was kept.
        assert c.unanswered == 1
        [again] = c.resume()
        assert again.result() == "first"
        assert c.call("add", "a", 1) == 3
        assert [mail.body for mail in b.poll(wait_seconds=5)] == [b"from the first"]
        assert b.call("tell", "from the second") == "second"
        assert [mail.body for mail in b.poll(wait_seconds=5)] == [b"from the second"]
    # The host goes back to what was there before the upgrade, where the old release still reads.
    for path in kept:
        assert Path(path).exists()
    for found in disk(tmp_path):
        Path(found).unlink()
    for path, data in kept.items():
        Path(path).write_bytes(data)
    with serving(old, tmp_path) as server:
        # Whoever demands the new level never shows it anything; whoever does not halts it.
        with known(server.url, "bob", level=2) as b, pytest.raises(AppraisalError):
            b.call("add", "a", 1)
        with known(server.url, "ada") as c, pytest.raises(RollbackError):
            c.call("add", "a", 1)
