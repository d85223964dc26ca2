"""`conclave new`: a project that works from its first minute.

Runs on the author's machine.
"""

from __future__ import annotations

import importlib.util
import itertools
import keyword
import re
import sys
from pathlib import Path
from typing import Final

from conclave.cli._new_asgi import FILES
from conclave.cli._terminal import safe
from conclave.errors import FormatError

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,38}[a-z0-9]\Z")
_COMMENT: Final = "   # "
_OWN: Final = ("conclave", "client", "conftest", "tests")

_ENCLAVE: Final = '''"""@NAME@: averages numbers of several people and shows no single one."""

import math

from conclave.enclave import Enclave, RpcError, rpc

ENOUGH = 3


class Refused(RpcError):
    """Declared, so its message reaches the caller; every other error stays inside."""


class @CLASS@(Enclave):
    def on_start(self) -> None:
        self.numbers: list[float] = []
        self.closed = False

    @rpc
    def add(self, number: float) -> int:
        """Take one more number; returns how many there are."""
        # Whoever compares the average before and after a number learns the number.
        if self.closed:
            raise Refused("the average was told: no further number is taken")
        if not math.isfinite(number):
            raise Refused("a number is finite")
        self.numbers.append(number)
        return len(self.numbers)

    @rpc
    def average(self) -> float:
        """The average of all numbers, once there are enough."""
        if len(self.numbers) < ENOUGH:
            raise Refused(f"an average is told of {ENOUGH} numbers or more")
        self.closed = True
        return sum(self.numbers) / len(self.numbers)
'''

_CLIENT: Final = '''"""Verifies the enclave, sends it numbers, asks for the average.

Example: python client.py 12 15 9
"""

import sys
from pathlib import Path

from conclave.client import Client
from conclave.errors import Error

URL = "http://127.0.0.1:8765"
CONSTRAINT = Path(__file__).with_name("@MODULE@.constraint")


def main() -> None:
    with Client(URL, constraint=CONSTRAINT) as client:
        for text in sys.argv[1:]:
            print("numbers so far:", client.call("add", float(text)))
        print("average:", client.call("average"))


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError:
        sys.exit(f"{CONSTRAINT.name} is missing: `conclave run @MODULE@.py` writes it")
    except (Error, ValueError) as error:
        sys.exit(str(error))
'''

_TEST: Final = '''"""The enclave, run for real under the simulated TEE."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from conclave.client import Client
from conclave.errors import AppraisalError, CallError
from conclave.testing import ServedEnclave, serve_enclave


@pytest.fixture
def served() -> Iterator[ServedEnclave]:
    with serve_enclave(Path(__file__).with_name("@MODULE@.py")) as served:
        yield served


def test_the_average_and_nothing_else(served: ServedEnclave) -> None:
    with Client(served.url, constraint=served.constraint) as client:
        client.call("add", 10.0)
        client.call("add", 20.0)
        with pytest.raises(CallError, match="3 numbers or more"):
            client.call("average")
        assert client.call("add", 60.0) == 3
        assert client.call("average") == 30.0
        with pytest.raises(CallError, match="no further number"):
            client.call("add", 1.0)


def test_another_program_gets_no_number(served: ServedEnclave) -> None:
    expected = "C:" + "0" * 64 + " SEC:INSECURE"
    with Client(served.url, constraint=expected) as client, pytest.raises(AppraisalError):
        client.call("add", 10.0)
'''

_README: Final = """# @NAME@

An enclave that averages numbers of several people and shows no single one.

| File | Holds |
|---|---|
| `@MODULE@.py` | the enclave: the program that data owners verify |
| `client.py` | what a data owner runs |
| `test_@MODULE@.py` | tests against a real enclave under the simulated TEE |

```
python -m pytest   # needs pytest
conclave run @MODULE@.py   # build, launch, serve; writes @MODULE@.constraint
python client.py 12 15 9   # in another terminal
conclave attack @MODULE@.py   # under a host that does its worst
```

`conclave run` is for development: the simulated TEE protects nothing from whoever owns the machine. What you
give to others is a release:

```
conclave build @MODULE@.py --sign author.key
conclave inspect @MODULE_DASHED@-0.enclave
conclave serve @MODULE_DASHED@-0.enclave
```

A release is another program than what `conclave run` builds: give clients the `.constraint` file that
`build` writes beside the bundle.

Keep `author.key` secret and keep a copy: it is who you are to those who accept your signature.
"""

_FILES: Final = {
    "@MODULE@.py": _ENCLAVE,
    "client.py": _CLIENT,
    "test_@MODULE@.py": _TEST,
    "README.md": _README,
}
_IGNORED: Final = "__pycache__/\n.pytest_cache/\n*.constraint\n*.enclave\n*.key\n"


def new_command(path: Path, *, asgi: bool) -> int:
    """Write the project and say what to do next.

    Args:
        asgi: a web application rather than a class with methods.

    Raises:
        FormatError: the name is none for a project, or something is there already.
    """
    name = path.name
    module = name.replace("-", "_")
    _check(name, module)
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FormatError(f"{path} exists already and is not an empty folder; choose another name")
    words = {
        "@NAME@": name,
        "@MODULE@": module,
        "@MODULE_DASHED@": module.replace("_", "-"),
        "@CLASS@": "".join(part.capitalize() for part in module.split("_")),
    }
    templates = {**(FILES if asgi else _FILES), ".gitignore": _IGNORED}
    files = {_filled(file, words): _filled(text, words) for file, text in templates.items()}
    files["README.md"] = _aligned(files["README.md"])
    path.mkdir(exist_ok=True)
    for file, text in files.items():
        with open(path / file, "x", encoding="utf-8") as target:
            target.write(text)
    print(f"wrote {path}: {', '.join(files)}")
    first = f"conclave lock {module}.py; " if asgi else ""
    print(f"next:  cd {path}; {first}python -m pytest; conclave run {module}{':app' if asgi else '.py'}")
    return 0


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _aligned(text: str) -> str:
    """Put the comments behind commands into one column for each run of lines that has them."""
    lines = text.split("\n")
    for has_comment, run in itertools.groupby(range(len(lines)), lambda at: _COMMENT in lines[at]):
        numbers = list(run) if has_comment else []
        width = max((len(lines[at].partition(_COMMENT)[0].rstrip()) for at in numbers), default=0)
        for at in numbers:
            command, _, comment = lines[at].partition(_COMMENT)
            lines[at] = f"{command.rstrip():<{width}}{_COMMENT}{comment}"
    return "\n".join(lines)


def _check(name: str, module: str) -> None:
    if not _NAME.match(name):
        raise FormatError(
            f"{safe(name)!r} is no name of a project: "
            "expected 2 to 40 characters of a-z 0-9 _ -, of which the first is a letter"
        )
    taken = module in _OWN or module in sys.stdlib_module_names or keyword.iskeyword(module)
    if not taken:
        found = importlib.util.find_spec(module)
        # Without origin it is a folder of that name, which no import statement prefers.
        taken = found is not None and found.origin is not None
    if taken or module.startswith("test_"):
        raise FormatError(f"a module named {module} exists already or means something else; choose another name")
