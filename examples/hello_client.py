from pathlib import Path

from conclave.client import Client

with Client("http://127.0.0.1:8765", constraint=Path("hello.constraint")) as client:
    print(client.call("greet", "World"))
