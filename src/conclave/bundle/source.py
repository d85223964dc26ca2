"""What an author wrote: one file with a PEP 723 block, a project directory, or `module:attribute` in one of both.

Runs on the author's machine at build time; trusts the author.

Spec: spec/bundle.md section 1.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from conclave.errors import BundleError

# The expression of PEP 723, reference implementation.
_BLOCK: Final = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
_KNOWN: Final = {
    "product-id": int,
    "revocation-level": int,
    "version": str,
    "module": str,
    "entry": str,
    "include": list,
    "environment": dict,
    "roster": list,
    "quorum": int,
    "memory-mib": int,
    "temporary-mib": int,
}
_SKIPPED: Final = ("__pycache__",)
_WORD: Final = r"[A-Za-z_]\w*"
# The last part of a path: as ASGI servers are told which application to serve.
_ENTRY: Final = re.compile(rf"(?P<module>{_WORD}(\.{_WORD})*):(?P<attribute>{_WORD})\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """One enclave's source.

    Attributes:
        module: name of the module that defines the enclave.
        attribute: what in it is the enclave class or the ASGI application; "" where it is the only enclave class.
        root: directory that goes on the import path.
        files: relative POSIX path below `root`, and where it is.
        path: the file or directory that declares all this.
        lock: where its lock is, or would be.
        settings: `[tool.conclave]`.
    """

    name: str
    release: str
    module: str
    attribute: str
    root: Path
    files: dict[str, Path]
    dependencies: list[str]
    path: Path
    lock: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def lock_command(self) -> str:
        """What makes its lock, to be typed as it is."""
        return f"conclave lock {shlex.quote(str(self.path))}"


def read_source(path: Path) -> Source:
    """Read the declarations of a file or project.

    Args:
        path: a Python file, a project directory, or `[DIRECTORY/]module:attribute`: a file there with a
            block of its own, or else a module of the project there.

    Raises:
        BundleError: saying what is missing or wrong.
        OSError: it cannot be read.
    """
    if path.is_dir():
        return _project(path)
    named = _ENTRY.match(path.name)
    if named is not None:
        return _entry(path.parent, named["module"], named["attribute"])
    if path.suffix != ".py":
        script = path.with_name(f"{path.name}.py")
        meant = f"; did you mean {script}?" if script.is_file() else ""
        raise BundleError(f"{path} is neither a Python file nor a project directory{meant}")
    return _script(path)


def _entry(folder: Path, module: str, attribute: str) -> Source:
    if module.endswith(".py") and (folder / module).is_file():
        meant = folder / f"{module.removesuffix('.py')}:{attribute}"
        raise BundleError(f"{folder / module}:{attribute} names a file in the place of a module; did you mean {meant}?")
    script, project = folder / f"{module}.py", folder / "pyproject.toml"
    if script.exists() and (_blocks(_text(script)) or not project.exists()):
        return replace(_script(script), attribute=attribute)
    if not project.exists():
        raise BundleError(f"{folder} has no {module}.py, and no pyproject.toml that says what belongs to {module}")
    return replace(_project(folder, module), attribute=attribute)


def _blocks(text: str) -> list[re.Match[str]]:
    return [m for m in _BLOCK.finditer(text) if m["type"] == "script"]


def _script(path: Path) -> Source:
    text = _text(path)
    blocks = _blocks(text)
    if len(blocks) > 1:
        raise BundleError(f"{path} has more than one `# /// script` block")
    declared: dict[str, Any] = {}
    if blocks:
        declared = _toml(_declaration(text, blocks[0]), f"{path}, in the `# /// script` block")
    if not path.stem.isidentifier():
        raise BundleError(f"{path.name}: the file's name must be a module name (letters, digits, _)")
    settings = _settings(declared, path)
    module, attribute = _declared_entry(settings, path) or (path.stem, "")
    if module != path.stem:
        raise BundleError(f"{path}: the `entry` of a single file names this file's module, {path.stem}")
    return Source(
        name=_name(path.stem),
        release=settings.get("version", "0"),
        module=module,
        attribute=attribute,
        root=path.resolve().parent,
        files={path.name: path, **_included(path.parent, settings, path)},
        dependencies=_dependencies(declared, path),
        path=path,
        lock=path.with_suffix(".lock"),
        settings=settings,
    )


def _declaration(text: str, block: re.Match[str]) -> str:
    """The TOML of a block, behind as many empty lines as are before it, so that errors name the file's lines."""
    before = text.count("\n", 0, block.start("content"))
    lines = block["content"].splitlines()
    return "\n" * before + "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)


def _declared_entry(settings: dict[str, Any], where: Path) -> tuple[str, str] | None:
    if "entry" not in settings:
        return None
    named = _ENTRY.match(settings["entry"])
    if named is None:
        raise BundleError(f"{where}: [tool.conclave] entry is module:attribute")
    return named["module"], named["attribute"]


def _included(root: Path, settings: dict[str, Any], where: Path) -> dict[str, Path]:
    """What else goes in: modules, packages and folders beside the entry's own."""
    found: dict[str, Path] = {}
    for name in settings.get("include", []):
        if not isinstance(name, str) or not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise BundleError(f"{where}: [tool.conclave] include lists files and folders below {root.name or root}/")
        place = root / name
        files = _below(place, root) if place.is_dir() else [place] if place.is_file() else []
        if not files:
            raise BundleError(f"{where}: [tool.conclave] include names {name}, where there is no file")
        found |= {p.relative_to(root).as_posix(): p for p in files}
    if any(p.is_symlink() for p in found.values()):
        raise BundleError(f"{where}: links do not go into a bundle")
    return found


def _below(place: Path, root: Path) -> list[Path]:
    return [p for p in sorted(place.rglob("*")) if p.is_file() and not _hidden(p.relative_to(root))]


def _project(path: Path, named: str = "") -> Source:
    declaration = path / "pyproject.toml"
    if not declaration.exists():
        scripts = sorted(p.name for p in path.glob("*.py"))
        there = f"; in it are {', '.join(scripts[:5])}" if scripts else ""
        raise BundleError(f"{path} has no pyproject.toml; a project needs one, or name a single Python file{there}")
    declared = _toml(_text(declaration), declaration)
    project = declared.get("project", {})
    if not isinstance(project.get("name"), str):
        raise BundleError(f"{declaration}: [project] needs a name")
    settings = _settings(declared, declaration)
    entry = _declared_entry(settings, declaration)
    module, attribute = entry or (settings.get("module", project["name"].replace("-", "_").lower()), "")
    module = named or module
    root = path / "src" if (path / "src").is_dir() else path
    package = module.split(".")[0]
    place = root / package
    if place.is_dir():
        found = _below(place, root)
    elif (root / f"{package}.py").exists():
        found = [root / f"{package}.py"]
    else:
        raise BundleError(f"{path}: no {package}/ or {package}.py; name it with `module` in [tool.conclave]")
    if any(p.is_symlink() for p in found):
        raise BundleError(f"{path}: links do not go into a bundle")
    return Source(
        name=_name(project["name"]),
        release=settings.get("version", str(project.get("version", "0"))),
        module=module,
        attribute=attribute,
        root=root.resolve(),
        files={p.relative_to(root).as_posix(): p for p in found} | _included(root, settings, declaration),
        dependencies=_dependencies(project, declaration),
        path=path,
        lock=path / "conclave.lock",
        settings=settings,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{path} is not UTF-8 text") from None


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in _SKIPPED for part in path.parts)


def _toml(text: str, where: Path | str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BundleError(f"{where}: {error}") from None


def _settings(declared: dict[str, Any], where: Path) -> dict[str, Any]:
    settings = declared.get("tool", {}).get("conclave", {})
    for name, value in settings.items():
        if name not in _KNOWN:
            raise BundleError(f"{where}: [tool.conclave] has no setting '{name}'; it has {', '.join(_KNOWN)}")
        if type(value) is not _KNOWN[name]:
            raise BundleError(f"{where}: [tool.conclave] {name} must be of type {_KNOWN[name].__name__}")
    return dict(settings)


def _dependencies(declared: dict[str, Any], where: Path) -> list[str]:
    wanted = declared.get("dependencies", [])
    if not isinstance(wanted, list) or not all(isinstance(d, str) for d in wanted):
        raise BundleError(f"{where}: dependencies must be a list of strings")
    return wanted


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "enclave"
