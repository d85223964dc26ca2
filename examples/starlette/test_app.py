import hashlib

import httpx2


def test_a_document_is_digested_as_it_comes(client: httpx2.Client) -> None:
    parts = [bytes([n]) * 10_000 for n in range(60)]
    answer = client.post("/digest", content=iter(parts)).json()
    assert answer == {"sha256": hashlib.sha256(b"".join(parts)).hexdigest(), "size": 600_000}


def test_the_log_follows(client: httpx2.Client) -> None:
    client.post("/digest", content=b"one more")
    with client.stream("GET", "/log", params={"count": 1}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        event = "".join(response.iter_text())
    assert event.startswith("id: 0\ndata: ")


def test_cookies_are_kept(client: httpx2.Client) -> None:
    assert [client.get("/visits").text for _ in range(3)] == ["1", "2", "3"]


def test_methods_and_paths_that_are_not_there(client: httpx2.Client) -> None:
    refused = client.get("/digest")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert client.get("/nothing").status_code == 404
    head = client.head("/visits")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == "1"
