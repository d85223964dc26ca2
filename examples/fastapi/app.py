"""Measurements that nobody but their owner and this program sees: an ordinary FastAPI application."""

import csv
import io
from collections.abc import AsyncIterator

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

app = FastAPI(title="Measurements")
readings: dict[str, list[float]] = {}


class Reading(BaseModel):
    pulse: float = Field(gt=0, le=300)


class Summary(BaseModel):
    count: int
    mean: float


@app.post("/people/{person}/readings", status_code=201)
async def add(person: str, reading: Reading) -> Summary:
    readings.setdefault(person, []).append(reading.pulse)
    return await summary(person)


@app.get("/people/{person}/summary")
async def summary(person: str) -> Summary:
    if person not in readings:
        raise HTTPException(404, "nobody measured that person")
    known = readings[person]
    return Summary(count=len(known), mean=sum(known) / len(known))


@app.put("/import")
async def take(request: Request) -> dict[str, int]:
    """Lines of `person,pulse`, as many as you like: they are read as they come."""
    taken, rest = 0, b""
    async for part in request.stream():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            person, _, pulse = line.decode().partition(",")
            readings.setdefault(person, []).append(Reading(pulse=pulse).pulse)
            taken += 1
    return {"taken": taken}


@app.get("/export")
async def export() -> StreamingResponse:
    """Everything as lines of `person,pulse`."""

    async def lines() -> AsyncIterator[str]:
        for person, values in readings.items():
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows((person, value) for value in values)
            yield text.getvalue()

    return StreamingResponse(lines(), media_type="text/csv")
