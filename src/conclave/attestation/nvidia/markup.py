"""XML as far as reference manifests use it, and its canonical form.

Runs at the relying party, on hostile bytes. What could make XML dangerous is refused by its bytes,
before a parser sees it: without `&`, `<!` and `<?` there are no entities and no character references,
no document type, comments, CDATA sections or processing instructions, and nothing external can be
named. What is left are elements, attributes and ASCII text, of one encoding, within bounds.

Canonical XML 1.1 (https://www.w3.org/TR/xml-c14n11) of such a document is short, and `canonical` is all
of it: the cases that make it long (inherited `xml:` attributes, `xml:base`, namespaces taken back,
comments, processing instructions, characters that only references can write) cannot occur.

Spec: spec/nvidia.md section 8 (GPU-12, GPU-13).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from xml.parsers import expat

from conclave.errors import FormatError

MAX_SIZE: Final = 262144
MAX_DEPTH: Final = 8
MAX_ELEMENTS: Final = 1024
MAX_ATTRIBUTES: Final = 32
# Printable ASCII without `&`, tab and newline.
_CHARACTERS: Final = re.compile(rb"[\t\n -%'-~]*+")
_NAME: Final = re.compile(r"(?:([A-Za-z_][A-Za-z0-9_.-]*):)?([A-Za-z_][A-Za-z0-9_.-]*)")
_DECLARATION: Final = "xmlns"
_RESERVED: Final = ("xml", "xmlns")


class Attribute(NamedTuple):
    """An attribute; sorts as canonical XML orders them. `space` is empty without a prefix."""

    space: str
    local: str
    name: str
    value: str


@dataclass(frozen=True, slots=True, eq=False)
class Element:
    """An element.

    Attributes:
        space, local: its namespace and its name in it.
        name: as written, with its prefix.
        attributes: without namespace declarations.
        scope: namespaces in force, by prefix; the default one's is empty.
        children: elements and texts.
    """

    space: str
    local: str
    name: str
    attributes: tuple[Attribute, ...]
    scope: Mapping[str, str]
    children: list[Element | str]

    @property
    def elements(self) -> tuple[Element, ...]:
        """The elements within it; FormatError if there is text between them that is not white space."""
        if any(isinstance(child, str) and child.strip() for child in self.children):
            raise malformed("there is text between elements")
        return tuple(child for child in self.children if isinstance(child, Element))

    @property
    def text(self) -> str:
        """The text that it holds; FormatError if it holds elements, too."""
        texts = [child for child in self.children if isinstance(child, str)]
        if len(texts) != len(self.children):
            raise malformed("there is an element within a text")
        return "".join(texts)


def parse(data: bytes, *, spaces: frozenset[str]) -> Element:
    """The document's element.

    Args:
        data: at most 256 KiB. Untrusted.
        spaces: the only namespaces that may be declared.

    Raises:
        FormatError: `rim-format`: not well-formed, or outside of what manifests use.
    """
    if len(data) > MAX_SIZE:
        raise malformed("it is too large")
    if not _CHARACTERS.fullmatch(data) or b"<!" in data or b"<?" in data:
        raise malformed("it has characters or markup that no manifest has")
    builder = _Builder(spaces)
    parser = expat.ParserCreate("US-ASCII")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    try:
        parser.Parse(bytes(data), True)
    except expat.ExpatError:
        raise malformed("it is not well-formed XML") from None
    return builder.root


class _Builder:
    """Puts the parser's events together, and refuses early what is out of bounds."""

    def __init__(self, spaces: frozenset[str]) -> None:
        self._spaces = spaces
        self._open: list[Element] = []
        self._count = 0
        self.root: Element

    def start(self, name: str, pairs: list[str]) -> None:
        self._count += 1
        if len(self._open) == MAX_DEPTH or self._count > MAX_ELEMENTS or len(pairs) > 2 * MAX_ATTRIBUTES:
            raise malformed("it is too deep, or has too many elements or attributes")
        written = [(*_split(n), n, value) for n, value in zip(pairs[::2], pairs[1::2], strict=True)]
        declared = {
            local if prefix else "": value for prefix, local, n, value in written if _DECLARATION in (prefix, n)
        }
        if not self._spaces.issuperset(declared.values()) or not declared.keys().isdisjoint(_RESERVED):
            raise malformed("it declares a namespace that no manifest has")
        scope = {**(self._open[-1].scope if self._open else {}), **declared}
        attributes = tuple(
            Attribute(_space(prefix, scope, default=""), local, n, value)
            for prefix, local, n, value in written
            if _DECLARATION not in (prefix, n)
        )
        if len({a[:2] for a in attributes}) != len(attributes):
            raise malformed("an attribute is there twice")
        prefix, local = _split(name)
        space = _space(prefix, scope, default=scope.get("", ""))
        element = Element(space, local, name, attributes, scope, [])
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, name: str) -> None:
        self._open.pop()

    def text(self, data: str) -> None:
        self._open[-1].children.append(data)


def _split(name: str) -> tuple[str, str]:
    """Prefix, empty if there is none, and local name."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise malformed("a name has another form than names in manifests have")
    return match[1] or "", match[2]


def _space(prefix: str, scope: Mapping[str, str], *, default: str) -> str:
    """The namespace that a prefix stands for."""
    if prefix and prefix not in scope:
        raise malformed("a name has a prefix that is not declared")
    return scope[prefix] if prefix else default


def canonical(element: Element, *, without: Element | None = None) -> bytes:
    """Canonical XML 1.1 of an element and all within it, as the first of its kind in the output.

    Args:
        element: of the whole document, or a part: then with all namespaces in force there.
        without: an element that is left out with all within it.
    """
    return "".join(_written(element, {}, without)).encode("ascii")


def _written(element: Element, rendered: Mapping[str, str], without: Element | None) -> Iterator[str]:
    """`rendered` are the namespaces in force in the output around the element: they are not repeated."""
    yield f"<{element.name}"
    for prefix, space in sorted(element.scope.items()):
        if rendered.get(prefix) != space:
            yield f' {_DECLARATION}:{prefix}="{space}"' if prefix else f' {_DECLARATION}="{space}"'
    for attribute in sorted(element.attributes):
        yield f' {attribute.name}="{_escaped(attribute.value, quote=True)}"'
    yield ">"
    for child in element.children:
        if isinstance(child, str):
            yield _escaped(child, quote=False)
        elif child is not without:
            yield from _written(child, element.scope, without)
    yield f"</{element.name}>"


def _escaped(value: str, *, quote: bool) -> str:
    """Of the characters that canonical XML escapes, those that can occur: no parser gives a value with a
    tab or newline here, since it made them spaces, and nothing can write `<`, `&` or a carriage return."""
    return value.replace('"', "&quot;") if quote else value.replace(">", "&gt;")


def malformed(why: str) -> FormatError:
    """The error for what is not a manifest of the known form."""
    return FormatError(f"reference manifest: {why}", code="rim-format")
