"""Settings of `conclave serve`: one file, the same names as the flags, flags win.

Runs in the untrusted host, before anything else of it.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from conclave.cli._terminal import safe
from conclave.errors import FormatError

SANDBOXES: Final = ("auto", "namespaces", "landlock")
LOGS: Final = ("console", "json", "none")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a bundle is served. Names with hyphens are those of flags and file."""

    bundle: str = ""
    tee: str = "simulated"
    host: str = "127.0.0.1"
    port: int = 8765
    platform: str = ""
    sandbox: str = "auto"
    store: str = ""
    store_timeout_seconds: float = 10.0
    tls_cert: str = ""
    tls_key: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = -1
    log: str = "console"
    drain_seconds: float = 20.0
    peer: tuple[str, ...] = ()
    witness: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise FormatError unless the values make sense, alone and together."""
        for name, low, high in (
            ("port", 0, 65535),
            ("metrics_port", -1, 65535),
            ("drain_seconds", 0, 3600),
            ("store_timeout_seconds", 0.1, 600),
        ):
            if not low <= getattr(self, name) <= high:
                raise FormatError(f"'{_hyphens(name)}' is from {low} to {high}, got {getattr(self, name)}")
        for name, words in (("sandbox", SANDBOXES), ("log", LOGS)):
            if getattr(self, name) not in words:
                raise FormatError(f"'{name}' is one of: {', '.join(words)}")
        if self.metrics_port > 0 and (self.metrics_host, self.metrics_port) == (self.host, self.port):
            raise FormatError(f"'metrics-port' and 'port' are both {self.port}; choose another for one of them")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise FormatError("'tls-cert' and 'tls-key' go together")
        witnesses_of(self.witness)
        if not self.bundle:
            raise FormatError("no bundle to serve; name it as `conclave serve BUNDLE` or as 'bundle' in the file")

    def text(self) -> str:
        """These settings as a file of them."""
        return "".join(f"{_hyphens(name)} = {json.dumps(value)}\n" for name, value in asdict(self).items())


def witnesses_of(texts: tuple[str, ...]) -> dict[str, str]:
    """Where witnesses are, by name. Raises FormatError for what is not NAME=URL, or a name twice."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, url = text.partition("=")
        if not name or not url.startswith(("http://", "https://")):
            raise FormatError("'witness' is NAME=URL, where the URL begins with http:// or https://")
        if name in found:
            raise FormatError(f"'witness' has the name '{safe(name[:40])}' twice; each has one address")
        found[name] = url
    return found


def settings(file: Path | None, flags: dict[str, Any]) -> Settings:
    """Defaults, then what the file says, then the flags that were given (not None).

    Raises:
        FormatError: a key, type or value that is not to be.
        OSError: the file cannot be read.
    """
    found = Settings() if file is None else replace(Settings(), **_read(file))
    given: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    made = replace(found, **wanted)
    made.check()
    return made


def _read(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{safe(file.name)} is not TOML: {safe(str(error))}") from None
    known = {_hyphens(field.name): field for field in fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"expected some of: {', '.join(known)}"
            raise FormatError(f"{safe(file.name)} has an unknown key '{safe(key[:40])}'; {hint}")
        field = known[key]
        kind = type(field.default)
        # In TOML a whole number is no float; a truth value is a number in Python alone.
        if kind is float and type(value) is int:
            value = float(value)
        if kind is tuple and type(value) is list and all(type(item) is str for item in value):
            value = tuple(value)
        if type(value) is not kind:
            names = {str: "a text", int: "a whole number", float: "a number", tuple: "a list of texts"}
            raise FormatError(f"{safe(file.name)}: '{key}' is {names[kind]}")
        values[field.name] = value
    return values


def _hyphens(name: str) -> str:
    return name.replace("_", "-")
