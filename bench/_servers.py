"""The servers that Mail is compared with: `python _servers.py echo|json|hello [CERTIFICATE KEY]`.

Each is one uvicorn worker on uvloop and httptools, without access log, over TLS 1.3
if a certificate is given. `echo` is a bare ASGI application, the others are FastAPI.
"""

from __future__ import annotations

import socket
import ssl
import sys
from typing import Any

import uvicorn


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The least that an ASGI application can do with a body."""
    message = await receive()
    body = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def fastapi_echo() -> Any:
    """A model with one text, sent back."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Item(BaseModel):
        data: str

    async def again(item: Item) -> Item:
        return item

    # No `from __future__` annotations here: FastAPI must see the class itself.
    again.__annotations__ = {"item": Item, "return": Item}
    app = FastAPI()
    app.post("/")(again)
    return app


def fastapi_hello() -> Any:
    """What examples/hello.py does."""
    from fastapi import FastAPI

    greeted = 0

    async def greet(name: str) -> str:
        nonlocal greeted
        greeted += 1
        return f"Hello {name}, you are number {greeted}."

    app = FastAPI()
    app.post("/")(greet)
    return app


def main() -> None:
    """Serve until interrupted."""
    kind, *files = sys.argv[1:]
    app = {"echo": lambda: echo, "json": fastapi_echo, "hello": fastapi_hello}[kind]()
    options: dict[str, Any] = {}
    if files:
        options = {"ssl_certfile": files[0], "ssl_keyfile": files[1]}
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", log_level="critical", access_log=False, **options
    )
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    sock = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(f"serving http{'s' if files else ''}://127.0.0.1:{sock.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main()
