"""The other Pythons of this machine build, serve, verify and call too."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASES = ("3.12", "3.13", "3.14")
SUITE = ("tests/unit/test_bundle.py", "tests/unit/test_mail.py", "tests/vectors", "tests/conformance/test_sdk.py")


def interpreter(release: str) -> str:
    """A Python of that release that starts, or a skip that says there is none."""
    path = shutil.which(f"python{release}")
    question = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    if path is not None:
        done = subprocess.run([path, "-c", question], capture_output=True, text=True, check=False)
        if done.stdout.strip() == release:
            return path
    pytest.skip(f"no python{release} on this machine: not shown here")


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_another_python(release: str, tmp_path: Path) -> None:
    if release == f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"this is Python {release}: the whole suite shows it")
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    for command in (
        [interpreter(release), "-m", "venv", str(tmp_path / "venv")],
        [*install, "--require-hashes", "-r", str(ROOT / "requirements" / "dev.lock")],
        [*install, "--no-deps", "--no-build-isolation", "-e", str(ROOT)],
        [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITE],
    ):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, (
            f"{release}: {' '.join(command[-3:])}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
