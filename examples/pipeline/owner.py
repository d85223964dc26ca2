"""The owner of the records: verifies the cleaner, and with it the scorer in its code."""

from pathlib import Path

from conclave.client import Client

RECORDS = [("Ada", 118.0), ("Grace", 131.5), ("Alan", 999.0), ("Edsger", 142.0)]

with Client("http://127.0.0.1:8765", constraint=Path("cleaner.constraint")) as cleaner:
    print(cleaner.call("assess", "http://127.0.0.1:8766", RECORDS))
