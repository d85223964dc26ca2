import httpx2


def test_a_reading_is_summed_up(client: httpx2.Client) -> None:
    assert client.post("/people/ada/readings", json={"pulse": 60}).status_code == 201
    added = client.post("/people/ada/readings", json={"pulse": 70})
    assert added.json() == {"count": 2, "mean": 65.0}
    assert client.get("/people/ada/summary").json() == added.json()


def test_what_is_no_reading_is_explained(client: httpx2.Client) -> None:
    refused = client.post("/people/ada/readings", json={"pulse": 301})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "pulse"]
    assert client.get("/people/nobody/summary").json() == {"detail": "nobody measured that person"}


def test_names_cross_as_they_are(client: httpx2.Client) -> None:
    assert client.post("/people/Zoë Ünal/readings", json={"pulse": 50}).status_code == 201
    assert client.get("/people/Zo%C3%AB%20%C3%9Cnal/summary").json()["count"] == 1


def test_import_and_export_are_streamed(client: httpx2.Client) -> None:
    hundreds = ("".join(f"person{n % 10},{50 + n % 100}\n" for n in range(h, h + 100)) for h in range(0, 20_000, 100))
    assert client.put("/import", content=(lines.encode() for lines in hundreds)).json() == {"taken": 20_000}
    with client.stream("GET", "/export") as response:
        assert response.headers["content-type"].startswith("text/csv")
        found = [line for line in response.iter_lines() if line.startswith("person")]
    assert len(found) == 20_000
    assert found[0] == "person0,50.0"


def test_the_application_describes_itself(client: httpx2.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "Measurements"
    assert "/people/{person}/readings" in document["paths"]
