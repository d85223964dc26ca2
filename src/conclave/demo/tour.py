"""`conclave demo`: the main job on real data, then an operator who tries everything.

Runs on one machine; every party is a process or a thread of its own, every
refusal is the product's own. Ends with a status other than zero if anything went
otherwise than told.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from conclave.bundle import Bundle, build
from conclave.client import Identity
from conclave.demo.mail_attacks import attack_mail
from conclave.demo.program_attacks import attack_identity, attack_start
from conclave.demo.refusal import Told
from conclave.demo.stage import Stage
from conclave.demo.state_attacks import attack_state
from conclave.errors import Error
from conclave.testing import HostServer

HERE = Path(__file__).parent
DATA = "sklearn/datasets/data/breast_cancer.csv"


def prepare(stage: Stage) -> tuple[Bundle, list[Identity]]:
    """Two identities, the program with their roster, and its bundle."""
    identities = [Identity.generate(), Identity.generate()]
    for n, identity in enumerate(identities):
        identity.save(stage.place / f"hospital{n}.identity")
    source = stage.place / "hospitals.py"
    roster = json.dumps([i.public.hex() for i in identities])
    source.write_text((HERE / "hospitals.py").read_text().replace("# roster = []", f"# roster = {roster}"))
    shutil.copy(HERE / "hospitals.lock", stage.place / "hospitals.lock")
    bundle = build(
        source,
        stage.place / "hospitals.enclave",
        mode="release",
        on_progress=lambda text: stage.say(f"[dim]{text}[/dim]"),
    )
    return bundle, identities


def split_records(stage: Stage, bundle: Bundle) -> None:
    """Each hospital's half, in file order, from scikit-learn's own wheel."""
    name = next(n for n in bundle.wheel_names() if n.startswith("scikit_learn-"))
    with zipfile.ZipFile(io.BytesIO(bundle.wheel(name))) as wheel:
        rows = list(csv.reader(wheel.read(DATA).decode().splitlines()))[1:]
    half = (len(rows) + 1) // 2
    for n, part in enumerate((rows[:half], rows[half:])):
        with open(stage.place / f"hospital{n}.csv", "w", newline="") as file:
            csv.writer(file).writerows(part)
    stage.say(f"{len(rows)} patients, 30 measurements each: {half} and {len(rows) - half} records")


def main_job(stage: Stage, server: HostServer, constraint: Path) -> None:
    """Both hospitals, each a process of its own."""
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "conclave.demo.hospital",
                server.url,
                str(constraint),
                str(stage.place / f"hospital{n}.identity"),
                str(stage.place / f"hospital{n}.csv"),
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
        stage.say(
            f"hospital {name}: verified, mailed {result['accepted']} records, got the model and accuracies: "
            f"own half {result['own']:.1%}, other half {result['other']:.1%}, "
            f"pooled [bold]{result['pooled']:.1%}[/bold]"
        )
        stage.say(f"            the model, used on its own records at home: {result['local']:.1%}")
    if results[0]["instance"] != results[1]["instance"]:
        raise Told("the hospitals talked to different instances")
    if not all(r["pooled"] > 0.9 and r["local"] > 0.9 and r["records"] == 569 for r in results):
        raise Told(f"the accuracies are not what this data gives: {results}")


def what_the_operator_saw(stage: Stage, server: HostServer) -> None:
    """Ciphertext and sizes."""
    mails = server.operator.requests
    stage.say(f"{len(mails)} mails, of {', '.join(str(len(m)) for m in mails)} bytes; the end of the first:")
    stage.say(f"[dim]{mails[0][-48:].hex()}[/dim]")
    record = (stage.place / "hospital0.csv").read_text().splitlines()[0].split(",")[0]
    seen = b"".join(mails) + b"".join(server.operator.answers)
    as_float = struct.pack(">d", float(record))
    if as_float in seen or record.encode() in seen or b"contribute" in seen:
        raise Told("plaintext was visible to the operator")
    stage.say("neither a measurement, nor a method's name, nor a topic is in it")


def tour() -> int:
    """Run the whole demonstration; returns the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="conclave-demo-") as place:
        stage = Stage(Path(place))
        try:
            _steps(stage)
        except (Error, Told, subprocess.SubprocessError) as error:
            stage.console.print(f"\n[red]the demonstration failed: {error}[/red]")
            return 1
        seconds = time.monotonic() - began
        if stage.failures:
            stage.console.print(f"\n[red]{stage.failures} attempts were not refused as told[/red]")
            return 1
        stage.title(f"Everything went as told, in {seconds:.0f} seconds.")
        stage.say("The simulated TEE protects nothing from whoever owns this machine: see SECURITY.md.")
    return 0


def _steps(stage: Stage) -> None:
    stage.title("1. The author builds the program; the hospitals read it and take its measurement")
    bundle, identities = prepare(stage)
    split_records(stage, bundle)
    line = f"C:{bundle.code.hex()} SEC:INSECURE"
    constraint = stage.place / "hospitals.constraint"
    constraint.write_text(line + "\n")
    stage.say(f"constraint  {line}")
    stage.title("2. The operator runs it; each hospital verifies it, mails its half, and gets the joint model")
    with HostServer(stage.host(bundle.path), hostile=True) as server:
        main_job(stage, server, constraint)
        stage.title("3. What the operator saw")
        what_the_operator_saw(stage, server)
        stage.title("4. The operator attacks the mail")
        attack_mail(stage, server, line)
        stage.title("5. The operator attacks the program's identity")
        attack_identity(stage, server, bundle, line)
    stage.title("6. The operator attacks the state")
    attack_state(stage, bundle, line, identities)
    stage.title("7. The operator starts the enclave with something nobody measured")
    attack_start(stage, bundle)
