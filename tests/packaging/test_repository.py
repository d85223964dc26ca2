"""What must hold of the repository as a whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_addresses_of_registries_and_no_paths_of_a_machine() -> None:
    hosts = (
        "py" + "pi.org",
        "pythonhosted" + ".org",
        "npmjs" + ".org",
        "registry" + ".yarn",
        "/ro" + "ot/.",
        "/wo" + "rk/",
    )
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
        for word in hosts:
            assert word not in text, f"{path.relative_to(ROOT)} names {word}"


def test_locks_have_hashes_only() -> None:
    for path in [*(ROOT / "requirements").glob("*.lock"), *(ROOT / "src").rglob("*.lock")]:
        lines = [line for line in path.read_text().replace("\\\n", " ").splitlines() if line.strip()]
        pins = [line for line in lines if not line.lstrip().startswith("#")]
        assert pins
        for line in pins:
            assert re.match(r"[A-Za-z0-9._-]+==\S+", line), line
            assert "--hash=sha256:" in line
            assert "://" not in line


def test_locked_runtime_of_the_demo_is_the_installed_one() -> None:
    """A bundle's lock pins nothing that the runtime brings in another version."""
    from conclave.bundle.lockfile import read_lock
    from conclave.bundle.source import read_source

    read_lock(read_source(ROOT / "src" / "conclave" / "demo" / "hospitals.py"))
