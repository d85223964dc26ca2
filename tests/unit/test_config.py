"""One file of settings, the flags, and the page that describes both: the same names."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from conclave.cli._app import serve
from conclave.cli._config import LOGS, Settings, settings
from conclave.errors import FormatError
from conclave.host.logs import FORMATS

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "operation.md"
NAMES = [field.name.replace("_", "-") for field in fields(Settings)]


def test_flags_file_and_page_have_the_same_names() -> None:
    flags = [name.replace("_", "-") for name in inspect.signature(serve).parameters]
    assert sorted(flags) == sorted([*NAMES, "config", "print-config"])
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \|", GUIDE.read_text(), re.MULTILINE)
    defaults = {name: text.strip() for name, text in rows if name in NAMES}
    assert list(defaults) == NAMES
    for field in fields(Settings):
        name = field.name.replace("_", "-")
        assert defaults[name] == (f"`{field.default}`" if field.default not in ("", ()) else ""), name
    assert LOGS == FORMATS


def test_defaults_then_the_file_then_the_flags(tmp_path: Path) -> None:
    file = tmp_path / "conclave.toml"
    file.write_text('bundle = "a.enclave"\nport = 1\nlog = "json"\ndrain-seconds = 3\n')
    made = settings(file, {"port": 2, "tls_cert": None, "bundle": None})
    assert made == replace(Settings(), bundle="a.enclave", port=2, log="json", drain_seconds=3.0)
    assert settings(None, {"bundle": Path("b.enclave")}) == replace(Settings(), bundle="b.enclave")


def test_what_is_printed_is_a_file_of_the_same(tmp_path: Path) -> None:
    made = replace(
        Settings(), bundle='odd "name" é.enclave', store="s3:x/y", store_timeout_seconds=2.5, peer=("a", "b")
    )
    made = replace(made, witness=("tower=https://tower.example", "north=http://127.0.0.1:8770"))
    file = tmp_path / "conclave.toml"
    file.write_text(made.text())
    assert settings(file, {}) == made
    assert list(tomllib.loads(made.text())) == NAMES
    done = subprocess.run(
        [sys.executable, "-m", "conclave.cli", "serve", "--config", str(file), "--port", "7", "--print-config"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == replace(made, port=7).text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "unknown key 'prot'; did you mean 'port'?"),
        ("tls_cert = 'x'", "unknown key 'tls_cert'; did you mean 'tls-cert'?"),
        ("zzzzzz = 1", "unknown key 'zzzzzz'; expected some of: bundle, tee"),
        ("[server]\nport = 1", "unknown key 'server'"),
        ("port = '1'", "'port' is a whole number"),
        ("port = true", "'port' is a whole number"),
        ("port = 1.0", "'port' is a whole number"),
        ("drain-seconds = 'x'", "'drain-seconds' is a number"),
        ("host = 1", "'host' is a text"),
        ("peer = 'x'", "'peer' is a list of texts"),
        ("peer = [1]", "'peer' is a list of texts"),
        ("witness = ['http://x']", "'witness' is NAME=URL"),
        ("witness = ['tower=x']", "'witness' is NAME=URL"),
        ("witness = ['=http://x']", "'witness' is NAME=URL"),
        ("witness = ['t=http://x', 't=http://y']", "'witness' has the name 't' twice"),
        ("port = 65536", "'port' is from 0 to 65535, got 65536"),
        ("drain-seconds = nan", "'drain-seconds' is from 0 to 3600"),
        ("metrics-port = -2", "'metrics-port' is from -1 to 65535"),
        ("store-timeout-seconds = 0", "'store-timeout-seconds' is from"),
        ("log = 'xml'", "'log' is one of: console, json, none"),
        ("sandbox = 'none'", "'sandbox' is one of: auto, namespaces, landlock"),
        ("tls-cert = 'x'", "'tls-cert' and 'tls-key' go together"),
        ("port = ", "is not TOML"),
        ("port = 1\nport = 2", "is not TOML"),
    ],
)
def test_what_a_file_cannot_say(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "conclave.toml"
    file.write_text(text)
    with pytest.raises(FormatError) as caught:
        settings(file, {"bundle": "x"})
    assert said in str(caught.value)


def test_something_is_served() -> None:
    with pytest.raises(FormatError, match="no bundle to serve"):
        settings(None, {})
