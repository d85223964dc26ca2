# /// script
# dependencies = ["starlette>=1.10,<2"]
# ///
"""Digests of documents, and a log of them: an ordinary Starlette application in one file."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, list[str]]]:
    yield {"log": []}


async def digest(request: Request) -> Response:
    """SHA-256 of the body, however large it is."""
    state, size = hashlib.sha256(), 0
    async for part in request.stream():
        state.update(part)
        size += len(part)

    async def note() -> None:
        request.state.log.append(state.hexdigest())

    return JSONResponse({"sha256": state.hexdigest(), "size": size}, background=BackgroundTask(note))


async def log(request: Request) -> Response:
    """Digests so far, as server-sent events; ends after as many as asked for."""
    wanted = int(request.query_params["count"])

    async def events() -> AsyncIterator[str]:
        for number in range(wanted):
            while number >= len(request.state.log):
                await asyncio.sleep(0.01)
            yield f"id: {number}\ndata: {request.state.log[number]}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def visits(request: Request) -> Response:
    """How often this client came, as its cookie says."""
    count = int(request.cookies.get("visits", "0")) + 1
    response = PlainTextResponse(f"{count}")
    response.set_cookie("visits", str(count), secure=True, httponly=True)
    return response


app = Starlette(
    routes=[Route("/digest", digest, methods=["POST"]), Route("/log", log), Route("/visits", visits)],
    lifespan=lifespan,
)
