"""The files of `conclave new --asgi`: a Starlette application, its client, and tests that run twice.

Read by `conclave new`, on the author's machine.
"""

from __future__ import annotations

from typing import Final

_APPLICATION: Final = '''# /// script
# dependencies = ["starlette>=1.10,<2"]
# ///
"""@NAME@: averages numbers of several people and shows no single one."""

import math

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

ENOUGH = 3
numbers: dict[bytes, float] = {}
told: list[float] = []


async def put(request: Request) -> JSONResponse:
    """Take the sender's number, or another one in its place; returns how many there are."""
    # The verified key of whoever asks. A header could say anything.
    sender = request.scope["extensions"]["conclave"]["sender"]
    # Whoever compares the average before and after a number learns the number.
    if told:
        raise HTTPException(409, "the average was told: no further number is taken")
    try:
        number = float(await request.body())
    except ValueError:
        raise HTTPException(422, "the body is a number") from None
    if not math.isfinite(number):
        raise HTTPException(422, "a number is finite")
    numbers[sender] = number
    return JSONResponse({"numbers": len(numbers)})


async def average(request: Request) -> JSONResponse:
    """The average of all numbers, once there are enough."""
    if len(numbers) < ENOUGH:
        raise HTTPException(409, f"an average is told of {ENOUGH} numbers or more")
    told[:] = [sum(numbers.values()) / len(numbers)]
    return JSONResponse({"average": told[0]})


app = Starlette(
    routes=[Route("/number", put, methods=["PUT"]), Route("/average", average)],
)
'''

_CLIENT: Final = '''"""Verifies the enclave, sends it a number, asks for the average.

Example: python client.py 12
"""

import sys
from pathlib import Path

import httpx2

from conclave.client import MailTransport
from conclave.errors import Error

URL = "http://127.0.0.1:8765"
CONSTRAINT = Path(__file__).with_name("@MODULE@.constraint")


def main() -> None:
    # Who sends is a key of this run; give `identity=` to be the same person again.
    transport = MailTransport(URL, constraint=CONSTRAINT)
    with httpx2.Client(transport=transport, base_url="https://@MODULE_DASHED@") as client:
        for number in sys.argv[1:]:
            print(client.put("/number", content=number).text)
        print(client.get("/average").text)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError:
        sys.exit(f"{CONSTRAINT.name} is missing: `conclave run @MODULE@:app` writes it")
    except (Error, httpx2.RequestError) as error:
        sys.exit(str(error))
'''

_FIXTURES: Final = '''"""The same tests, in this process and in an enclave."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

import @MODULE@
from conclave.client import MailTransport
from conclave.testing import serve_enclave


def sent_by(sender: bytes) -> Any:
    """The application as one client meets it in this process, where nobody verifies a key."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {"conclave": {"sender": sender}}
        await @MODULE@.app(scope, receive, send)

    return application


@pytest.fixture(params=["process", "enclave"])
def person(request: pytest.FixtureRequest) -> Iterator[Callable[[], httpx2.Client]]:
    """Makes clients; each is another person."""
    base = "https://@MODULE_DASHED@"
    with ExitStack() as stack:
        if request.param == "process":
            @MODULE@.numbers.clear()
            @MODULE@.told.clear()
            yield lambda: stack.enter_context(TestClient(sent_by(os.urandom(32)), base_url=base))
        else:
            served = stack.enter_context(serve_enclave(Path(__file__).with_name("@MODULE@:app")))

            def make() -> httpx2.Client:
                transport = MailTransport(served.url, constraint=served.constraint)
                return stack.enter_context(httpx2.Client(transport=transport, base_url=base))

            yield make
'''

_TEST: Final = """from collections.abc import Callable

import httpx2

Person = Callable[[], httpx2.Client]


def test_the_average_and_nothing_else(person: Person) -> None:
    ada, bea, cyd = person(), person(), person()
    assert ada.put("/number", content="10").json() == {"numbers": 1}
    assert bea.put("/number", content="20").json() == {"numbers": 2}
    assert ada.get("/average").status_code == 409
    assert cyd.put("/number", content="60").json() == {"numbers": 3}
    assert ada.get("/average").json() == {"average": 30.0}
    refused = bea.put("/number", content="1")
    assert (refused.status_code, "no further number" in refused.text) == (409, True)


def test_one_person_has_one_number(person: Person) -> None:
    ada = person()
    ada.put("/number", content="10")
    assert ada.put("/number", content="11").json() == {"numbers": 1}


def test_what_is_no_number(person: Person) -> None:
    ada = person()
    assert ada.put("/number", content="ten").status_code == 422
    assert ada.put("/number", content="nan").status_code == 422
"""

_README: Final = """# @NAME@

A web application that averages numbers of several people and shows no single one, served inside an enclave.

| File | Holds |
|---|---|
| `@MODULE@.py` | the application: the program that data owners verify |
| `client.py` | what a data owner runs |
| `conftest.py`, `test_@MODULE@.py` | tests, each in this process and in an enclave under the simulated TEE |

```
conclave lock @MODULE@.py   # pins starlette and what it needs by hash (needs uv)
python -m pytest   # needs pytest and starlette
conclave run @MODULE@:app   # build, launch, serve; writes @MODULE@.constraint
python client.py 12   # in another terminal, as three people
```

`conclave run` is for development: the simulated TEE protects nothing from whoever owns the machine. What you
give to others is a release:

```
conclave build @MODULE@:app --sign author.key
conclave inspect @MODULE_DASHED@-0.enclave
conclave serve @MODULE_DASHED@-0.enclave
```

A release is another program than what `conclave run` builds: give clients the `.constraint` file that
`build` writes beside the bundle.

Keep `author.key` secret and keep a copy: it is who you are to those who accept your signature.
Anybody can be several people here; who may come at all decides `admit` of a subclass of
`conclave.enclave.asgi.AsgiEnclave`, which is then what you run and build: `@MODULE@:Members`.
"""

# By name; @MODULE@ and the other words are replaced in both.
FILES: Final = {
    "@MODULE@.py": _APPLICATION,
    "client.py": _CLIENT,
    "conftest.py": _FIXTURES,
    "test_@MODULE@.py": _TEST,
    "README.md": _README,
}
