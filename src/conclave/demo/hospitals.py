# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn>=1.7"]
#
# [tool.conclave]
# product-id = 1
# roster = []
# ///
"""Two hospitals train one model on their pooled records and see only the model.

The records lie sealed on the operator's disk. Nothing leaves before every member of
the roster has come back to one history that has the records of all: otherwise the
operator could give each hospital an enclave of its own, or put back the disk of
yesterday, and make up what is missing.
"""

import io
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from conclave.enclave import Enclave, RpcError, rpc


@dataclass
class Model:
    mean: list[float]
    scale: list[float]
    coefficients: list[float]
    intercept: float


@dataclass
class Result:
    model: Model
    accuracy_own: float
    accuracy_other: float
    accuracy_pooled: float
    records: int


class BadRecords(RpcError):
    """The records do not have the agreed shape."""


class NotContributed(RpcError):
    """The member asks for the result before it contributed."""


class Hospitals(Enclave):
    persistence = "code"

    def on_start(self) -> None:
        # A cache: the same records give the same model again.
        self.trained: tuple[Model, dict[bytes, float], float] | None = None

    @rpc
    def contribute(self, features: list[list[float]], labels: list[int]) -> int:
        self.roster.check(self.sender)
        table, classes = np.array(features, dtype=float), np.array(labels, dtype=int)
        if table.ndim != 2 or table.shape[1] != 30 or not np.isfinite(table).all():
            raise BadRecords("records are rows of 30 finite numbers")
        if len(table) != len(classes) or set(classes.tolist()) != {0, 1}:
            raise BadRecords("labels are 0 or 1, one a row, both present")
        if "closed" in self.map:
            raise BadRecords("the records of all members are there already")
        self.map[f"records/{self.sender.hex()}"] = packed(table, classes)
        return len(table)

    @rpc
    async def result(self) -> Result | None:
        """The model; None: ask again, so that the enclave sees you come back."""
        self.roster.check(self.sender)
        records = {bytes.fromhex(key[8:]): unpacked(value) for key, value in self.map.scan("records/")}
        if self.sender not in records:
            raise NotContributed("contribute first")
        if len(records) < len(self.roster.members):
            return None
        versions = self.map.of(int)
        if "closed" not in versions:
            versions["closed"] = self.version
            return None
        await self.stable(versions["closed"])
        if self.trained is None:
            self.trained = train(records)
        model, halves, pooled = self.trained
        other = next(value for key, value in halves.items() if key != self.sender)
        return Result(model, halves[self.sender], other, pooled, sum(len(y) for _, y in records.values()))


def packed(table: np.ndarray, classes: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.column_stack((table, classes)), allow_pickle=False)
    return file.getvalue()


def unpacked(value: bytes) -> tuple[np.ndarray, np.ndarray]:
    both = np.load(io.BytesIO(value), allow_pickle=False)
    return both[:, :-1], both[:, -1].astype(int)


def classifier() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def train(records: dict[bytes, tuple[np.ndarray, np.ndarray]]) -> tuple[Model, dict[bytes, float], float]:
    """The pooled model, and mean accuracies on the same held-out folds, 5 x 2."""
    members = sorted(records)
    features = np.concatenate([records[m][0] for m in members])
    labels = np.concatenate([records[m][1] for m in members])
    owner = np.concatenate([np.full(len(records[m][1]), i) for i, m in enumerate(members)])
    scores: dict[int, list[float]] = {-1: [], **{i: [] for i in range(len(members))}}
    folds = RepeatedStratifiedKFold(n_splits=2, n_repeats=5, random_state=0)
    for inside, held_out in folds.split(features, labels):
        for which, kept in scores.items():
            rows = inside if which < 0 else inside[owner[inside] == which]
            fitted = classifier().fit(features[rows], labels[rows])
            kept.append(float(fitted.score(features[held_out], labels[held_out])))
    fitted = classifier().fit(features, labels)
    scaler, regression = fitted[0], fitted[1]
    model = Model(
        scaler.mean_.tolist(),
        scaler.scale_.tolist(),
        regression.coef_[0].tolist(),
        float(regression.intercept_[0]),
    )
    halves = {member: float(np.mean(scores[i])) for i, member in enumerate(members)}
    return model, halves, float(np.mean(scores[-1]))
