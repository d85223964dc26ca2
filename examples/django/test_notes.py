import httpx2
import pytest

pytestmark = pytest.mark.anyio


async def test_a_note_is_kept(client: httpx2.AsyncClient) -> None:
    added = await client.post("/notes/", data={"title": "Zoë", "text": "called"})
    assert added.status_code == 201
    shown = await client.get(f"/notes/{added.json()['id']}/")
    assert shown.json() == {"title": "Zoë", "text": "called", "attached": 0}


async def test_a_file_is_attached(client: httpx2.AsyncClient) -> None:
    added = await client.post(
        "/notes/", data={"title": "scan"}, files={"attachment": ("scan.bin", bytes(3_000_000), "image/png")}
    )
    assert added.json()["attached"] == 3_000_000


async def test_all_notes_are_streamed(client: httpx2.AsyncClient) -> None:
    await client.post("/notes/", data={"title": "for the list"})
    async with client.stream("GET", "/notes.csv") as response:
        assert response.headers["content-type"] == "text/csv"
        lines = [line async for line in response.aiter_lines()]
    assert any(line.endswith(",for the list,0") for line in lines)


async def test_what_is_refused(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/notes/", data={"text": "no title"})).json() == {"error": "a note has a title"}
    assert (await client.get("/notes/999999/")).status_code == 404
    assert (await client.get("/notes/")).status_code == 405
