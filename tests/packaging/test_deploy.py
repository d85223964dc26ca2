"""The files in deploy/ fit the program they run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from conclave.cli._app import app
from conclave.cli._config import settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def test_the_settings_are_settings(tmp_path: Path) -> None:
    made = settings(DEPLOY / "conclave.toml", {})
    assert made.metrics_port > 0
    # Those that are commented out are settings too.
    text = (DEPLOY / "conclave.toml").read_text()
    (tmp_path / "conclave.toml").write_text(text.replace("# tls", "tls"))
    assert settings(tmp_path / "conclave.toml", {}).tls_key


def _directives(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def test_the_unit_starts_what_there_is() -> None:
    unit = _directives((DEPLOY / "conclave.service").read_text())
    program, *arguments = unit["ExecStart"].split()
    assert Path(program).name == "conclave"
    command, _, _ = app.parse_args(arguments, exit_on_error=False)
    assert command.__name__ == "serve"
    assert int(unit["TimeoutStopSec"]) > settings(DEPLOY / "conclave.toml", {}).drain_seconds
    # Only the host is told to stop; the enclave is stopped by it.
    assert unit["KillMode"] == "mixed"
    assert "HUP" in unit["ExecReload"]
    # What the enclave's sandbox does itself, and would do without.
    assert not {"RestrictNamespaces", "ProtectHostname"} & set(unit)
    # A dynamic user has no home, and all else is read-only.
    places = dict(word.split("=") for word in unit["Environment"].split())
    assert places["XDG_STATE_HOME"] == f"/var/lib/{unit['StateDirectory']}"
    assert places["XDG_CACHE_HOME"] == f"/var/cache/{unit['CacheDirectory']}"


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "conclave.service"
    # The program is not installed where it will be.
    unit.write_text((DEPLOY / "conclave.service").read_text().replace("/opt/conclave/bin/conclave", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert "conclave.service" not in done.stderr, done.stderr


def test_the_container_starts_what_there_is() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    words = [line.split(None, 1) for line in lines]
    assert [w for w, _ in words][:2] == ["ARG", "FROM"]
    assert dict(words)["FROM"] == "${BASE}"
    # No host of a registry: whoever builds names the image.
    assert "/" not in dict(words)["ARG"]
    known = {"ARG", "FROM", "RUN", "COPY", "USER", "WORKDIR", "ENV", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
    assert {w for w, _ in words} <= known | {"ENTRYPOINT", "CMD"}
    entry = re.findall(r'"([^"]*)"', dict(words)["ENTRYPOINT"]) + re.findall(r'"([^"]*)"', dict(words)["CMD"])
    command, _, _ = app.parse_args(entry[1:], exit_on_error=False)
    assert command.__name__ == "serve"
    assert [w for w, _ in words].index("USER") < [w for w, _ in words].index("ENTRYPOINT")
    for line in (body for word, body in words if word == "RUN"):
        assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0
    health = re.findall(r'"([^"]*)"', dict(words)["HEALTHCHECK"])[-1]
    compile(health, "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{settings(DEPLOY / 'conclave.toml', {}).metrics_port}/healthz" in health
