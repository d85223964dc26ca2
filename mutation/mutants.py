"""Each check of the verifier, of mail, of bundles and of state, taken out one at a time.

A mutant is the source with one check gone: a refusal that never happens, one
operand of it that never counts, a call of a verifying function dropped, an
acceptance that always holds, a memory of what was seen that is not kept.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "conclave"
FILES = (
    *(
        path.relative_to(PACKAGE).as_posix()
        for path in sorted((PACKAGE / "attestation").rglob("*.py"))
        # Devices beside a TEE are no condition for trusting an enclave, yet.
        if path.parent.name != "nvidia"
    ),
    "mail/session.py",
    "mail/mailbox.py",
    "mail/conversation.py",
    "mail/_wire.py",
    "mail/padding.py",
    "mail/stream.py",
    "mail/post.py",
    "_mailheader.py",
    "_chunkheader.py",
    "_framing.py",
    "_codec.py",
    "bundle/archive.py",
    "bundle/manifest.py",
    "client/core.py",
    "persistence/records.py",
    "persistence/replay.py",
    "persistence/context.py",
    "persistence/log.py",
    "persistence/snapshots.py",
    "persistence/witness.py",
    "witness/steps.py",
)
_CHECKING = re.compile(r"_?(verify|check)")
_REMEMBERING = re.compile(r"(self\._(seen|above)|term\.ids)\.add\(")


@dataclass(frozen=True)
class Mutant:
    """One change: `old` at a place of a file becomes `new`."""

    name: str
    file: str
    start: int
    end: int
    new: str

    def applied(self) -> str:
        """The mutated source."""
        raw = (PACKAGE / self.file).read_bytes()
        return (raw[: self.start] + self.new.encode() + raw[self.end :]).decode()


def mutants() -> list[Mutant]:
    """All of them, in the order of the source."""
    found: list[Mutant] = []
    for file in FILES:
        source = (PACKAGE / file).read_text()
        names: Counter[str] = Counter()
        lines = [0]
        for line in source.encode().splitlines(keepends=True):
            lines.append(lines[-1] + len(line))
        for where, node, new in _changes(ast.parse(source)):
            name = f"{file} {where}: {' '.join(ast.unparse(node).split())[:120]} -> {new}"
            names[name] += 1
            if names[name] > 1:
                name += f" #{names[name]}"
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            found.append(Mutant(name, file, start, end, new))
    return found


def _changes(tree: ast.Module) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    for where, function in _functions(tree, ""):
        returns = ast.unparse(function.returns) if function.returns else ""
        for node in ast.walk(function):
            if isinstance(node, ast.If):
                yield from ((where, n, new) for n, new in _of_if(node, returns))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                text = ast.unparse(node.value)
                if _CHECKING.match(text.partition("(")[0].rpartition(".")[2]) or _REMEMBERING.match(text):
                    yield where, node, "pass"
            elif isinstance(node, (ast.Assign, ast.Return)) and returns != "str | None":
                value = node.value
                if isinstance(value, ast.BoolOp) and isinstance(value.op, ast.And):
                    yield from ((where, operand, "True") for operand in value.values)
                elif isinstance(node, ast.Return) and returns == "bool" and isinstance(value, ast.Compare):
                    yield where, value, "True"


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node


def _of_if(node: ast.If, returns: str) -> Iterator[tuple[ast.expr, str]]:
    last = node.body[-1]
    nothing = isinstance(last, ast.Return) and (last.value is None or ast.unparse(last.value) in ("None", "False"))
    if returns == "str | None":
        # Such a function names a reason to refuse; None accepts.
        if nothing:
            yield node.test, "True"
            yield from ((operand, "True") for operand in _operands(node.test, ast.Or))
        return
    refusing = isinstance(last, ast.Return) and "_refuse(" in ast.unparse(last)
    if isinstance(last, ast.Raise) or refusing or nothing:
        yield node.test, "False"
        operands = _operands(node.test, ast.Or)
        yield from ((operand, "False") for operand in operands if len(operands) > 1)
    if node.orelse and isinstance(node.orelse[-1], ast.Raise):
        operands = _operands(node.test, ast.And)
        yield from ((operand, "True") for operand in operands)


def _operands(node: ast.expr, kind: type[ast.boolop]) -> list[ast.expr]:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, kind):
        return [inner for value in node.values for inner in _operands(value, kind)]
    return [node]
