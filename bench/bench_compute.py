"""Compute inside an enclave against the same code, files and interpreter outside.

`train`: the demo's model, logistic regression on scaled data, cross-validated, on
scikit-learn's 569 records. `python`: a kernel of pure Python. `matmul`: numpy, one
BLAS thread. Inside is a sandboxed enclave under the simulated TEE; outside is a plain
process that imports the unpacked bundle. Each takes its own processor time around the
kernel. Rounds take both in turn, in changing order; ratios are of one round; `spread`
is the lowest and highest of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from _common import HERE, emit, middle

import conclave
from conclave.bundle import build, unpack
from conclave.client import Client
from conclave.host import Host
from conclave.platform import start_platform
from conclave.testing import HostServer

ROUNDS = 21
KERNELS = ("train", "python", "matmul")
DEMO = HERE.parent / "src" / "conclave" / "demo" / "hospitals.py"
ENCLAVE = """# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn>=1.7"]
#
# [tool.conclave]
# environment = {OPENBLAS_NUM_THREADS = "1", OMP_NUM_THREADS = "1"}
# ///
import time

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from conclave.enclave import Enclave, rpc

FEATURES, LABELS = load_breast_cancer(return_X_y=True)
MATRIX = np.random.default_rng(1).random((600, 600))


def train() -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(cross_val_score(model, FEATURES, LABELS, cv=20).mean())


def python() -> float:
    total, state = 0, 12345
    for _ in range(1_500_000):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        total += state & 15
    return float(total)


def matmul() -> float:
    product = MATRIX
    for _ in range(12):
        product = product @ MATRIX
        product /= product.max()
    return float(product.sum())


def timed(kernel: str) -> list[float]:
    work = {"train": train, "python": python, "matmul": matmul}[kernel]
    began = time.process_time()
    result = work()
    return [time.process_time() - began, result]


class Compute(Enclave):
    @rpc
    def run(self, kernel: str) -> list[float]:
        return timed(kernel)
"""
OUTSIDE = """
import json, sys
sys.path[1:1] = [{app!r}, {site!r}, {package!r}]
from compute import timed
for line in sys.stdin:
    print(json.dumps(timed(line.strip())), flush=True)
"""


class Outside:
    """A process that runs the kernels when it is told to."""

    def __init__(self, unpacked: Path) -> None:
        package = str(Path(conclave.__file__).parents[1])
        script = OUTSIDE.format(app=str(unpacked / "app"), site=str(unpacked / "site"), package=package)
        environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
        self._process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, kernel: str) -> list[float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(kernel + "\n")
        self._process.stdin.flush()
        return [float(v) for v in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(prefix="bench-compute-") as place_name:
        place = Path(place_name)
        (place / "compute.py").write_text(ENCLAVE)
        (place / "compute.lock").write_bytes(DEMO.with_suffix(".lock").read_bytes())
        bundle = build(place / "compute.py", place / "compute.enclave", mode="release")
        unpack(bundle, place / "unpacked")
        host = Host(lambda: start_platform(place / "machine", bundle.path), restart=False)
        outside = Outside(place / "unpacked")
        found: dict[str, dict[str, list[float]]] = {k: {"inside": [], "outside": []} for k in KERNELS}
        with (
            HostServer(host) as server,
            Client(server.url, constraint=f"C:{bundle.code.hex()} SEC:INSECURE", timeout_seconds=120) as client,
        ):
            sides = {"inside": lambda k: client.call("run", k, returns=list[float]), "outside": outside.run}
            for number in range(-1, ROUNDS):
                for kernel in KERNELS:
                    results = set()
                    for side in sorted(sides, reverse=bool(number % 2)):
                        seconds, result = sides[side](kernel)
                        results.add(result)
                        if number >= 0:
                            found[kernel][side].append(seconds)
                    if len(results) != 1:
                        raise RuntimeError(f"{kernel}: another result inside than outside")
        outside.close()
    ratios = {k: sorted(a / b for a, b in zip(f["inside"], f["outside"], strict=True)) for k, f in found.items()}
    emit(
        "compute",
        ours={k: {"cpu_seconds": middle(f["inside"])} for k, f in found.items()},
        theirs={"outside": {k: {"cpu_seconds": middle(f["outside"])} for k, f in found.items()}},
        ratios={k: {"outside": middle(r), "spread": [round(r[0], 4), round(r[-1], 4)]} for k, r in ratios.items()},
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
