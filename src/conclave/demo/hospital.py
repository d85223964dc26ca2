"""One hospital: a client process of its own.

Usage: python -m conclave.demo.hospital URL CONSTRAINT IDENTITY RECORDS

Verifies the enclave, mails its records, waits for the model. Prints one JSON line.
Trusts its own files and what verification returns, nothing else.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from conclave.client import Client, Identity


def main() -> None:
    """Contribute, then ask for the joint model."""
    url, constraint, identity, records = sys.argv[1:]
    with open(records, newline="") as file:
        rows = [[float(value) for value in row] for row in csv.reader(file)]
    features, labels = [row[:-1] for row in rows], [int(row[-1]) for row in rows]
    client = Client(url, constraint=Path(constraint), identity=Identity.load(identity), timeout_seconds=60)
    with client:
        instance = client.verify()
        accepted = client.call("contribute", features, labels)
        # What each call brings back is shown in the next: that is how the enclave knows who stands behind its state.
        while (result := client.call("result")) is None:
            time.sleep(0.1)
    print(
        json.dumps(
            {
                "instance": instance.claims_digest.hex(),
                "code": instance.claims.code.hex(),
                "accepted": accepted,
                "records": result["records"],
                "own": result["accuracy_own"],
                "other": result["accuracy_other"],
                "pooled": result["accuracy_pooled"],
                "local": _accuracy(result["model"], features, labels),
            }
        )
    )


def _accuracy(model: dict[str, Any], features: list[list[float]], labels: list[int]) -> float:
    """Use the received model, here, on the hospital's own records."""
    parts = list(zip(model["mean"], model["scale"], model["coefficients"], strict=True))
    right = 0
    for row, label in zip(features, labels, strict=True):
        score = model["intercept"]
        for value, (mean, scale, weight) in zip(row, parts, strict=True):
            score += weight * (value - mean) / scale
        right += (1 / (1 + math.exp(-score)) >= 0.5) == bool(label)
    return right / len(labels)


if __name__ == "__main__":
    main()
