"""Every numbered requirement has a test that names it, and every named one exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENT = re.compile(r"^- \*\*([A-Z]+-\d+)\*\*|^\| (T-\d+) \|", re.MULTILINE)


def required() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "spec").glob("*.md")):
        for match in REQUIREMENT.finditer(path.read_text()):
            name = match[1] or match[2]
            assert name not in found, f"{name} is in {found[name]} and in {path.name}"
            found[name] = path.name
    return found


def named() -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "spec":
                found |= {a.value: path.name for a in node.args if isinstance(a, ast.Constant)}
    return found


def defended(name: str) -> bool:
    return not re.fullmatch(r"T-9\d", name)


def test_every_requirement_has_a_test() -> None:
    missing = sorted(name for name in required().keys() - named().keys() if defended(name))
    assert not missing, f"no test names {', '.join(missing)}"


def test_every_named_requirement_exists() -> None:
    unknown = sorted(named().keys() - required().keys())
    assert not unknown, f"tests name requirements that no spec has: {', '.join(unknown)}"


def test_threats_are_tested_as_attacks() -> None:
    attacked = set()
    for path in (ROOT / "tests" / "adversary").glob("test_*.py"):
        attacked |= set(re.findall(r"\bT-\d+", path.read_text()))
    missing = sorted(n for n in required() if n.startswith("T-") and defended(n) and n not in attacked)
    assert not missing, f"no test in tests/adversary plays {', '.join(missing)}"


def test_sources_name_requirements_that_exist() -> None:
    known = {(name.rpartition("-")[0], int(name.rpartition("-")[2])) for name in required()}
    prefixes = "|".join({prefix for prefix, _ in known} - {"T"})
    for path in (ROOT / "src").rglob("*.py"):
        for prefix, number in re.findall(rf"\b({prefixes})-(\d+)", path.read_text()):
            assert (prefix, int(number)) in known, f"{path.name} names {prefix}-{number}, which no spec has"
