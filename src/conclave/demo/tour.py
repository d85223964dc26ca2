"""`conclave demo`: the main job on real data, then an operator who tries everything.

Runs on one machine; every party is a process or a thread of its own, every
refusal is the product's own. Ends with a status other than zero if anything went
otherwise than told.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from conclave import _codec
from conclave.attestation import Constraint, parse_instance_info
from conclave.bundle import Bundle, build, read_bundle
from conclave.cli._places import platform_directory
from conclave.client import Client, Identity
from conclave.client.core import split_mails
from conclave.errors import (
    AppraisalError,
    Error,
    PlatformError,
    SequenceError,
    TransportError,
    VerificationError,
)
from conclave.host import Host
from conclave.platform import bootstrap_command, runtime_tree, start_platform
from conclave.testing import HostServer

HERE = Path(__file__).parent
DATA = "sklearn/datasets/data/breast_cancer.csv"

EVIL = '''
"""A hostile author's program that claims to be another one."""
from conclave.enclave import Enclave, rpc


class Evil(Enclave):
    def on_start(self) -> None:
        import gc

        # The author's code shares the process with the runtime, so it can change
        # what the runtime says about itself ...
        context = self._context
        victim = bytes.fromhex("%(victim)s")
        honest = context._make_claims

        def lie(encryption_key, signing_key):
            import msgspec
            return msgspec.structs.replace(
                honest(encryption_key, signing_key), code=victim, bundle_id=bytes.fromhex("%(bundle_id)s"))

        context._make_claims = lie
        context._renew(type("F", (), {"request": 0})())

    @rpc
    def contribute(self, features: list[list[float]], labels: list[int]) -> int:
        return 0
'''

OTHER = '''
"""Another program: the operator's own."""
from conclave.enclave import Enclave, rpc


class Other(Enclave):
    @rpc
    def contribute(self, features: list[list[float]], labels: list[int]) -> int:
        return len(labels)
'''


class Told(Exception):
    """Something went otherwise than told."""


class Tour:
    """The steps of the demonstration."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.console = Console(highlight=False, soft_wrap=True)
        self.failures = 0
        self.machine = platform_directory(None)

    # Output --------------------------------------------------------------------------

    def title(self, text: str) -> None:
        """A heading."""
        self.console.print(f"\n[bold]{text}[/bold]")

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(f"  {text}")

    def expect(self, attempt: str, by: str, act: Callable[[], str]) -> None:
        """One attack: `act` returns how it was refused, or raises."""
        try:
            outcome = act()
        except Exception as error:
            self.failures += 1
            self.console.print(
                f"  [red]✗ {attempt}: NOT refused as told[/red]: {type(error).__name__}: {escape(str(error))}"
            )
            return
        self.console.print(f"  [green]✓[/green] {attempt}\n      refused by the {by}: [dim]{escape(outcome)}[/dim]")

    # Preparation ---------------------------------------------------------------------

    def prepare(self) -> tuple[Bundle, list[Identity]]:
        """Two identities, the program with their roster, and its bundle."""
        identities = [Identity.generate(), Identity.generate()]
        for n, identity in enumerate(identities):
            identity.save(self.place / f"hospital{n}.identity")
        source = self.place / "hospitals.py"
        roster = json.dumps([i.public.hex() for i in identities])
        source.write_text((HERE / "hospitals.py").read_text().replace("# roster = []", f"# roster = {roster}"))
        shutil.copy(HERE / "hospitals.lock", self.place / "hospitals.lock")
        bundle = build(
            source,
            self.place / "hospitals.enclave",
            mode="release",
            on_progress=lambda text: self.say(f"[dim]{text}[/dim]"),
        )
        return bundle, identities

    def split_records(self, bundle: Bundle) -> None:
        """Each hospital's half, in file order, from scikit-learn's own wheel."""
        name = next(n for n in bundle.wheel_names() if n.startswith("scikit_learn-"))
        with zipfile.ZipFile(io.BytesIO(bundle.wheel(name))) as wheel:
            rows = list(csv.reader(wheel.read(DATA).decode().splitlines()))[1:]
        half = (len(rows) + 1) // 2
        for n, part in enumerate((rows[:half], rows[half:])):
            with open(self.place / f"hospital{n}.csv", "w", newline="") as file:
                csv.writer(file).writerows(part)
        self.say(f"{len(rows)} patients, 30 measurements each: {half} and {len(rows) - half} records")

    def host(self, bundle: Path) -> Host:
        """A host for one bundle on the simulated machine."""
        return Host(lambda: start_platform(self.machine, bundle), restart=False, patience_seconds=0.0)

    # The main job --------------------------------------------------------------------

    def main_job(self, server: HostServer, constraint: Path) -> None:
        """Both hospitals, each a process of its own."""
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "conclave.demo.hospital",
                    server.url,
                    str(constraint),
                    str(self.place / f"hospital{n}.identity"),
                    str(self.place / f"hospital{n}.csv"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for n in range(2)
        ]
        results = []
        for name, process in zip("AB", processes, strict=True):
            output, errors = process.communicate(timeout=120)
            if process.returncode != 0:
                raise Told(f"hospital {name} failed: {errors.strip().splitlines()[-1]}")
            results.append(json.loads(output))
        for name, result in zip("AB", results, strict=True):
            self.say(
                f"hospital {name}: verified, mailed {result['accepted']} records, got the model and accuracies: "
                f"own half {result['own']:.1%}, other half {result['other']:.1%}, "
                f"pooled [bold]{result['pooled']:.1%}[/bold]"
            )
            self.say(f"            the model, used on its own records at home: {result['local']:.1%}")
        if results[0]["instance"] != results[1]["instance"]:
            raise Told("the hospitals talked to different instances")
        if not all(r["pooled"] > 0.9 and r["local"] > 0.9 and r["records"] == 569 for r in results):
            raise Told(f"the accuracies are not what this data gives: {results}")

    def what_the_operator_saw(self, server: HostServer) -> None:
        """Ciphertext and sizes."""
        mails = server.operator.requests
        self.say(f"{len(mails)} mails, of {', '.join(str(len(m)) for m in mails)} bytes; the end of the first:")
        self.say(f"[dim]{mails[0][-48:].hex()}[/dim]")
        record = (self.place / "hospital0.csv").read_text().splitlines()[0].split(",")[0]
        seen = b"".join(mails) + b"".join(server.operator.answers)
        as_float = struct.pack(">d", float(record))
        if as_float in seen or record.encode() in seen or b"contribute" in seen:
            raise Told("plaintext was visible to the operator")
        self.say("neither a measurement, nor a method's name, nor a topic is in it")

    # Attacks -------------------------------------------------------------------------

    def attack_mail(self, server: HostServer, constraint: str) -> None:
        """Everything an operator can do to mail."""
        operator = server.operator

        def client(**options: Any) -> Client:
            made = Client(server.url, constraint=constraint, timeout_seconds=1.0, attempts=1, **options)
            made.verify()
            return made

        def tamper() -> str:
            operator.on_request = lambda m: m[:-1] + bytes([m[-1] ^ 1])
            with client() as c:
                return _refusal(TransportError, lambda: c.call("contribute", [], []), "could not decrypt")

        def truncate() -> str:
            operator.on_request = _shortened
            with client() as c:
                return _refusal(TransportError, lambda: c.call("contribute", [], []), "could not decrypt")

        def tamper_reply() -> str:
            operator.on_answer = lambda a: a[:-1] + bytes([a[-1] ^ 1]) if a else a
            with client() as c:
                said = _refusal(TransportError, lambda: c.call("contribute", [], []), "nothing authentic")
                if c.refused_mails != 1:
                    raise Told("the client took an altered reply")
                return said

        def replay() -> str:
            with client() as c:
                _call(c)
                first = operator.requests[-1]
                _call(c)  # acknowledges the first reply
                status, body = server.run(operator.inject("POST", "/mail", first))
                reply = _open(c, split_mails(body)[0])
                if status != 200 or reply.kind != 3:
                    raise Told(f"a replayed mail was handled: {status}")
                return f"sequence {reply.answers} again, expected {reply.expected}; no handler ran"

        def replay_reply() -> str:
            with client() as c:
                _call(c)
                old = operator.answers[-1]
                operator.on_answer = lambda a: old
                said = _refusal(TransportError, lambda: c.call("contribute", [], []), "nothing authentic")
                if c.refused_mails != 1:
                    raise Told("the client took an old reply")
                return said

        def reorder() -> str:
            with client() as c:
                _call(c)
                held: list[bytes] = []

                def swap(mail: bytes) -> bytes | None:
                    held.append(mail)
                    return None if len(held) == 1 else mail

                operator.on_request = swap
                late = _Background(lambda: c.call("contribute", [], []))
                _until(lambda: len(held) == 1)
                said = _refusal(SequenceError, lambda: c.call("contribute", [], []), "")
                late.result()
                return said

        def drop() -> str:
            with client() as c:
                _call(c)
                count = 0

                def swallow(mail: bytes) -> bytes | None:
                    nonlocal count
                    count += 1
                    return None if count == 1 else mail

                operator.on_request = swallow
                missing = _Background(lambda: c.call("contribute", [], []))
                _until(lambda: count == 1)
                after = _refusal(SequenceError, lambda: c.call("contribute", [], []), "")
                error = missing.result()
                if not isinstance(error, TransportError):
                    raise Told(f"the missing mail was not reported: {error!r}")
                return f"next one: {after}; missing one: reported by time-out"

        def cross_wire() -> str:
            with client() as alice, client() as bob:
                _call(alice)
                for_alice = operator.answers[-1]
                operator.on_answer = lambda a: for_alice
                said = _refusal(TransportError, lambda: bob.call("contribute", [], []), "nothing authentic")
                if bob.refused_mails != 1:
                    raise Told("Bob took Alice's mail")
                return f"Alice's mail does not decrypt for Bob; {said}"

        attacks: list[tuple[str, str, Callable[[], str]]] = [
            ("tamper with a mail", "enclave", tamper),
            ("tamper with a reply", "client", tamper_reply),
            ("truncate a mail and mend its size field", "enclave", truncate),
            ("replay a mail", "enclave", replay),
            ("replay a reply", "client", replay_reply),
            ("reorder two mails", "enclave", reorder),
            ("drop a mail", "enclave and client", drop),
            ("cross-wire two clients", "client", cross_wire),
        ]
        for attempt, by, act in attacks:
            operator.behave()
            self.expect(attempt, by, act)
        operator.behave()

    def attack_identity(self, server: HostServer, bundle: Bundle, constraint: str, stranger: Bundle) -> None:
        """Another program, and a program that lies about its identity."""

        def swap() -> str:
            with (
                HostServer(self.host(stranger.path)) as other,
                Client(other.url, constraint=constraint) as c,
            ):
                return _refusal(AppraisalError, c.verify, "")

        def forge() -> str:
            source = self.place / "evil.py"
            source.write_text(EVIL % {"victim": bundle.code.hex(), "bundle_id": bundle.bundle_id.hex()})
            evil = build(source, self.place / "evil.enclave", mode="release")
            with HostServer(self.host(evil.path)) as other, Client(other.url, constraint=constraint) as c:
                return _refusal(VerificationError, c.verify, "")

        def forge_claims() -> str:
            def change(info: bytes) -> bytes:
                parsed = parse_instance_info(info)
                claims = parsed.claims.replace(b"release", b"debugge")[: len(parsed.claims)]
                return _codec.encode({**_fields(parsed), "claims": claims.replace(b"\x00" * 4, b"\x00\x00\x00\x01", 1)})

            server.operator.on_info = change
            try:
                with Client(server.url, constraint=constraint) as c:
                    return _refusal(Error, c.verify, "")
            finally:
                server.operator.behave()

        self.expect("swap in a different program", "client", swap)
        self.expect("forge another bundle's identity from inside", "client", forge)
        self.expect("alter the claims on their way", "client", forge_claims)

    def attack_start(self, bundle: Bundle) -> None:
        """Unmeasured input at start."""

        def launcher() -> str:
            launch = lambda: start_platform(self.machine, bundle.path, environment=("LD_PRELOAD=/tmp/x.so",))  # noqa: E731
            with contextlib.ExitStack() as stack:
                return _refusal(PlatformError, lambda: stack.enter_context(HostServer(Host(launch, restart=False))), "")

        def bootstrap() -> str:
            process = subprocess.run(
                bootstrap_command(str(runtime_tree().root)),
                env={"LC_ALL": "C.UTF-8", "EXTRA": "1"},
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
            if process.returncode != 78:
                raise Told(f"it ran: status {process.returncode}: {process.stderr}")
            return process.stderr.strip().splitlines()[-1]

        self.expect("start with an extra environment variable", "platform", launcher)
        self.expect("the same, running the bootstrap directly", "measured bootstrap", bootstrap)

    def attack_roster(self, bundle: Bundle, constraint: str, identities: list[Identity]) -> None:
        """One hospital, and an operator who invents the other."""

        def contribute(client: Client, hospital: int) -> None:
            with open(self.place / f"hospital{hospital}.csv", newline="") as file:
                rows = [[float(value) for value in row] for row in csv.reader(file)]
            client.call("contribute", [r[:-1] for r in rows], [int(r[-1]) for r in rows])

        with (
            HostServer(self.host(bundle.path)) as first,
            HostServer(self.host(bundle.path)) as second,
            Client(first.url, constraint=constraint) as invented,
            Client(first.url, constraint=constraint, identity=identities[0], timeout_seconds=2, attempts=1) as alone,
            Client(second.url, constraint=constraint, identity=identities[1]) as other,
        ):

            def invent() -> str:
                return _refusal(Error, lambda: contribute(invented, 1), "NotInRoster")

            def separate() -> str:
                contribute(alone, 0)
                contribute(other, 1)
                digest = alone.instance.claims_digest
                return _refusal(TransportError, lambda: alone.call("result", digest), "no reply")

            def mix() -> str:
                digest = alone.instance.claims_digest
                return _refusal(Error, lambda: other.call("result", digest), "WrongInstance")

            self.expect("invent the other hospital", "enclave", invent)
            self.expect(
                "give each hospital an enclave of its own", "enclave, which keeps the model to itself", separate
            )
            self.expect("pass one instance off as the other", "enclave", mix)


def _fields(info: Any) -> dict[str, Any]:
    return {name: getattr(info, name) for name in info.__struct_fields__}


def _shortened(mail: bytes) -> bytes:
    """A mail cut by seven bytes, its ciphertext size (offset 64) made to fit."""
    size = int.from_bytes(mail[64:68], "big") - 7
    return (mail[:64] + size.to_bytes(4, "big") + mail[68:])[:-7]


def _call(client: Client) -> None:
    """A call that reaches the handler; the enclave refuses strangers, which is an answer."""
    with contextlib.suppress(Error):
        client.call("contribute", [], [])


def _open(client: Client, mail: bytes) -> Any:
    session = client._core._topics["default"].conversation.session
    assert session is not None
    return session.decrypt(mail)


def _refusal(kind: type[Error], act: Callable[[], object], contains: str) -> str:
    """Run an attempt that must raise `kind`; returns its message in one line."""
    try:
        act()
    except kind as error:
        text = f"{type(error).__name__}: {error}" if not isinstance(error, TransportError) else str(error)
        if contains and contains not in f"{getattr(error, 'type_name', '')} {text}":
            raise Told(f"refused otherwise: {text}") from None
        line = " ".join(text.split())
        return line if len(line) <= 150 else line[:149] + "…"
    raise Told("it went through")


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            raise Told("waited in vain")
        time.sleep(0.005)


class _Background:
    """Runs an attempt in a thread and keeps the error it ends with."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._act()
        except Exception as error:
            self._error = error

    def result(self) -> Exception | None:
        """The error, once it ended."""
        self._thread.join(30)
        return self._error


@contextlib.contextmanager
def _workplace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="conclave-demo-") as name:
        yield Path(name)


def tour() -> int:
    """Run the whole demonstration; returns the exit status."""
    began = time.monotonic()
    with _workplace() as place:
        tour = Tour(place)
        try:
            _steps(tour)
        except (Error, Told, subprocess.SubprocessError) as error:
            tour.console.print(f"\n[red]the demonstration failed: {error}[/red]")
            return 1
        seconds = time.monotonic() - began
        if tour.failures:
            tour.console.print(f"\n[red]{tour.failures} attempts were not refused as told[/red]")
            return 1
        tour.title(f"Everything went as told, in {seconds:.0f} seconds.")
        tour.say("The simulated TEE protects nothing from whoever owns this machine: see SECURITY.md.")
    return 0


def _steps(tour: Tour) -> None:
    tour.title("1. The author builds the program; the hospitals read it and take its measurement")
    bundle, identities = tour.prepare()
    tour.split_records(bundle)
    line = f"C:{bundle.code.hex()} SEC:INSECURE"
    constraint = tour.place / "hospitals.constraint"
    constraint.write_text(line + "\n")
    Constraint.parse(line)
    tour.say(f"constraint  {line}")
    tour.title("2. The operator runs it; each hospital verifies it, mails its half, and gets the joint model")
    with HostServer(tour.host(bundle.path), hostile=True) as server:
        tour.main_job(server, constraint)
        tour.title("3. What the operator saw")
        tour.what_the_operator_saw(server)
        tour.title("4. The operator attacks the mail")
        tour.attack_mail(server, line)
        tour.title("5. The operator attacks the program's identity")
        source = tour.place / "other.py"
        source.write_text(OTHER)
        stranger = build(source, tour.place / "other.enclave", mode="release")
        tour.attack_identity(server, bundle, line, stranger)
    tour.title("6. The operator attacks the roster")
    tour.attack_roster(bundle, line, identities)
    tour.title("7. The operator starts the enclave with something nobody measured")
    tour.attack_start(read_bundle(bundle.path))
