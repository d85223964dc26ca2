"""TCB recovery on a running system: real hosts and clients, a simulated machine that counts as genuine hardware.

The vendor publishes, the machine is updated, lists expire, the platform is revoked: each client goes from good to
refused and back exactly as its constraint says. Nothing sleeps; clients' clocks are given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conclave.bundle import Bundle
from conclave.client import Client
from conclave.errors import AppraisalError, Error, ExpiredError, RevokedError
from conclave.host import Host
from conclave.platform import Machine, runtime_tree, start_platform
from conclave.platform.vendor import Vendor
from conclave.testing import HostServer
from conclave.testing.verifier import secure_simulated

SOURCE = """
from conclave.enclave import Enclave, rpc


class Counter(Enclave):
    def on_start(self) -> None:
        self.count = 0

    @rpc
    def next(self) -> int:
        self.count += 1
        return self.count
"""
FOUND = "INTEL-SA-00001"
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def bundle(author: Callable[..., Bundle]) -> Bundle:
    return author("counter", SOURCE)


class Stage:
    """One machine, its host while that runs, and the clients who know it."""

    def __init__(self, directory: Path, bundle: Bundle) -> None:
        self.directory = directory
        self.machine = Machine.open(directory)
        self.bundle = bundle
        self.created = datetime.now(UTC)
        self._published = threading.Event()
        self._clients: dict[str, Client] = {}
        self.server: HostServer | None = None

    def constraints(self) -> dict[str, str]:
        program = f"C:{self.bundle.code.hex()}"
        tomorrow = (self.created + DAY).date()
        return {
            "secure": f"{program} SEC:SECURE",
            "stale": f"{program} SEC:STALE",
            "advised": f"{program} SEC:SECURE ADVISORIES:{FOUND}",
            "dated": f"{program} SEC:STALE TCB:sgx@{tomorrow}",
            "fresh": f"{program} SEC:STALE EXPIRE:P20D",
        }

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Start the machine's one enclave; the clients that were there before go on with it."""

        def heard(event: dict[str, Any]) -> None:
            if event.get("event") == "endorsements":
                self._published.set()

        host = Host(lambda: start_platform(self.directory, self.bundle.path), restart=False, on_event=heard)
        with HostServer(host) as server:
            self.server = server
            self._clients = {name: Client(server.url, constraint=text) for name, text in self.constraints().items()}
            try:
                yield
            finally:
                for client in self._clients.values():
                    client.close()
                self.server = None

    def renew(self) -> None:
        """What the host does once a day: the enclave renews key and evidence, newer endorsements are stapled."""
        assert self.server is not None
        self._published.clear()
        self.server.run(self.server.host._renew())
        assert self._published.wait(30), "no endorsements were published"
        # The event is heard before the host has put it to use, in the loop that this waits for.
        self.server.run(_nothing())

    def vendor(self, change: Callable[[Vendor], Vendor]) -> None:
        self.machine.tell(change)

    def fares(self, *, later: timedelta = timedelta()) -> dict[str, str]:
        """What each client finds when it verifies; whoever accepts also calls."""
        found = {}
        for name, client in self._clients.items():
            client._core._now = lambda: datetime.now(UTC) + later
            try:
                security = client.verify().security
                assert client.call("next") > 0
                found[name] = security
            except AppraisalError as error:
                found[name] = ", ".join(sorted(failure.partition(":")[0] for failure in error.failures))
            except Error as error:
                found[name] = type(error).__name__ + " " + error.code
        return found


async def _nothing() -> None:
    return


@pytest.fixture
def stage(tmp_path: Path, bundle: Bundle) -> Iterator[Stage]:
    made = Stage(tmp_path, bundle)
    with secure_simulated(made.machine.root_der, measurement=runtime_tree().measurement):
        yield made


def everybody(stage: Stage, fares: str) -> dict[str, str]:
    return dict.fromkeys(stage.constraints(), fares)


GOOD = {"secure": "SECURE", "stale": "SECURE", "advised": "SECURE", "dated": "TCB", "fresh": "SECURE"}


@pytest.mark.slow
@pytest.mark.spec("TCB-1", "TCB-2", "TCB-3")
def test_from_good_to_stale_to_refused_and_back(stage: Stage) -> None:
    with stage.serving():
        assert stage.fares() == GOOD
        # An advisory about the level that the machine has, with nothing newer to install.
        stage.vendor(lambda vendor: vendor.declare(stage.machine.tcb, "SWHardeningNeeded", advisories=(FOUND,)))
        # Nobody sees it before the host staples it.
        assert stage.fares() == GOOD
        stage.renew()
        assert stage.fares() == GOOD | {"secure": "SEC", "stale": "STALE", "fresh": "STALE"}
        # A newer level: what is out of date, no accepted advisory lifts.
        stage.vendor(lambda vendor: vendor.publish(date=stage.created + DAY, advisories=(FOUND,)))
        stage.renew()
        out_of_date = {"secure": "SEC", "stale": "STALE", "advised": "SEC", "dated": "TCB", "fresh": "STALE"}
        assert stage.fares() == out_of_date
        # The machine is patched; what runs has the version with which it started.
        stage.machine.update()
        stage.renew()
        assert stage.fares() == out_of_date
    with stage.serving():
        assert stage.fares() == everybody(stage, "SECURE")


@pytest.mark.slow
@pytest.mark.spec("TCB-4", "TCB-5")
def test_what_expires_or_is_revoked_is_refused_by_all(stage: Stage) -> None:
    with stage.serving():
        assert stage.fares() == GOOD
        for what, code in (("crl", "root-crl"), ("tcb-info", "tcb-info"), ("qe-identity", "qe-identity")):
            stage.vendor(lambda vendor, what=what: vendor.expire(what))
            stage.renew()
            assert stage.fares() == everybody(stage, f"{ExpiredError.__name__} {code}-expired")
            stage.vendor(lambda vendor: vendor.restore(stage.machine.tcb))
            stage.renew()
            assert stage.fares() == GOOD
        for what, code in (("platform", "pck-revoked"), ("ca", "pck-ca-revoked")):
            stage.vendor(lambda vendor, what=what: vendor.revoke(what))
            stage.renew()
            assert stage.fares() == everybody(stage, f"{RevokedError.__name__} {code}")
            stage.vendor(lambda vendor: vendor.restore(stage.machine.tcb))
            stage.renew()
            assert stage.fares() == GOOD
        stage.vendor(lambda vendor: vendor.declare(stage.machine.tcb, "Revoked"))
        stage.renew()
        assert stage.fares() == everybody(stage, f"{RevokedError.__name__} tcb-revoked")


@pytest.mark.slow
@pytest.mark.spec("TCB-5")
def test_a_host_that_staples_nothing_new(stage: Stage) -> None:
    with stage.serving():
        assert stage.fares(later=19 * DAY) == GOOD
        # Who asked for fresh endorsements notices first; in the end everybody does.
        assert stage.fares(later=21 * DAY) == GOOD | {"fresh": "EXPIRE"}
        assert stage.fares(later=31 * DAY) == everybody(stage, f"{ExpiredError.__name__} tcb-info-expired")


@pytest.mark.slow
@pytest.mark.spec("TCB-2", "TCB-4")
def test_a_revoked_machine_is_not_helped_by_an_update(stage: Stage) -> None:
    stage.vendor(lambda vendor: vendor.revoke("platform"))
    stage.vendor(lambda vendor: vendor.publish(date=stage.created))
    stage.machine.update()
    with stage.serving():
        assert stage.fares() == everybody(stage, f"{RevokedError.__name__} pck-revoked")


@pytest.mark.slow
@pytest.mark.spec("TCB-14")
def test_the_rehearsal_foresees_what_clients_then_meet(stage: Stage) -> None:
    from conclave.attestation import Constraint
    from conclave.attestation.rehearse import Enclave, Situation, rehearse

    constraints = {name: Constraint.parse(text) for name, text in stage.constraints().items()}
    with stage.serving():
        assert stage.server is not None
        info = stage.server.host.info
        assert info is not None
        enclave = Enclave.of_instance("counter", info)

        def coming(vendor: Vendor) -> Vendor:
            return vendor.publish(date=stage.created + DAY, advisories=(FOUND,))

        moment = datetime.now(UTC)
        later = Enclave(
            enclave.name,
            enclave.kind,
            enclave.evidence,
            stage.machine.foresee(coming, now=moment),
            enclave.claims,
        )
        outcomes = rehearse(Situation((enclave,), moment), Situation((later,), moment), constraints)
        assert {o.constraint for o in outcomes if o.loses_access} == {"secure", "advised"}
        before = stage.fares()
        stage.vendor(coming)
        stage.renew()
        after = stage.fares()
        served = {"SECURE", "STALE"}
        for outcome in outcomes:
            assert outcome.now.accepted == (before[outcome.constraint] in served)
            assert outcome.then.accepted == (after[outcome.constraint] in served)
            if outcome.then.accepted:
                assert outcome.then.security == after[outcome.constraint]
