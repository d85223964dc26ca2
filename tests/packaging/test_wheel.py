"""What users install: the wheel holds everything, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("conclave_core-*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        metadata = next(n for n in names if n.endswith("METADATA"))
        text = wheel.read(metadata).decode()
    ours = {
        str(p.relative_to(ROOT / "src"))
        for p in (ROOT / "src").rglob("*")
        if p.is_file() and p.suffix in (".py", ".lock", ".typed", ".pem")
    }
    assert {n for n in names if not n.startswith("conclave_core-")} == ours
    assert {"conclave/py.typed", "conclave/demo/hospitals.lock", "conclave/enclave/bootstrap.py"} <= ours
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "Name: conclave-core" in text
    assert "Requires-Python: >=3.11" in text
    # The core installs without uv; what needs it is an extra.
    (uv,) = [line for line in text.splitlines() if line.startswith("Requires-Dist: uv>")]
    assert "extra == 'build'" in uv
