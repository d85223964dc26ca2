"""XML of the closed kind, its bounds, and its canonical form."""

from __future__ import annotations

import random
import time
import tracemalloc

import pytest

from conclave.attestation.nvidia.markup import (
    MAX_ATTRIBUTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_SIZE,
    Element,
    canonical,
    parse,
)
from conclave.errors import FormatError

SPACES = frozenset({"urn:a", "urn:b"})


def again(text: str) -> str:
    return canonical(parse(text.encode(), spaces=SPACES)).decode()


def refused(data: str | bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse(data.encode() if isinstance(data, str) else data, spaces=SPACES)
    assert caught.value.code == "rim-format"


# What Canonical XML 1.1 makes of each; written by hand from its sections 1.1, 2.3 and 3.
CANONICAL = {
    "empty element": ("<a/>", "<a></a>"),
    "white space within tags": ("<a  b = '1'\n c='2' ></a >", '<a b="1" c="2"></a>'),
    "white space around": ("\n <a></a>\n", "<a></a>"),
    "white space inside": ("<a>\n\t<b> </b> </a>", "<a>\n\t<b> </b> </a>"),
    "quotes": ("""<a b='say "x"'>"'</a>""", """<a b="say &quot;x&quot;">"'</a>"""),
    "greater than": ("<a b='>'>></a>", '<a b=">">&gt;</a>'),
    "white space in values": ("<a b='\t1\n2 3'/>", '<a b=" 1 2 3"></a>'),
    "attributes by name": (
        '<a c="1" B="2" b="3" a1="4" a-="5" a="6"/>',
        '<a B="2" a="6" a-="5" a1="4" b="3" c="1"></a>',
    ),
    "attributes by namespace, then name": (
        '<a q:a="1" p:z="2" y="3" xmlns:q="urn:b" xmlns:p="urn:a" x="4" p:b="5"/>',
        '<a xmlns:p="urn:a" xmlns:q="urn:b" x="4" y="3" p:b="5" p:z="2" q:a="1"></a>',
    ),
    "namespaces first, the default one before all": (
        '<a b="1" xmlns:b="urn:b" xmlns:B="urn:b" xmlns="urn:a"/>',
        '<a xmlns="urn:a" xmlns:B="urn:b" xmlns:b="urn:b" b="1"></a>',
    ),
    "superfluous declarations": (
        '<a xmlns="urn:a" xmlns:p="urn:b"><b xmlns="urn:a" xmlns:p="urn:b"><p:c xmlns:p="urn:b"/></b></a>',
        '<a xmlns="urn:a" xmlns:p="urn:b"><b><p:c></p:c></b></a>',
    ),
    "declarations that change": (
        '<a xmlns="urn:a" xmlns:p="urn:b"><b xmlns="urn:b" xmlns:p="urn:a"><c xmlns:p="urn:b"/></b><d/></a>',
        '<a xmlns="urn:a" xmlns:p="urn:b"><b xmlns="urn:b" xmlns:p="urn:a"><c xmlns:p="urn:b"></c></b><d></d></a>',
    ),
    "unused declarations": ('<a><b xmlns:p="urn:a"><c/></b></a>', '<a><b xmlns:p="urn:a"><c></c></b></a>'),
}  # fmt: skip


@pytest.mark.spec("GPU-13")
@pytest.mark.parametrize("name", CANONICAL)
def test_the_canonical_form(name: str) -> None:
    text, expected = CANONICAL[name]
    assert again(text) == expected
    assert again(expected.replace("&gt;", ">").replace('"say &quot;x&quot;"', "'say \"x\"'")) == expected


@pytest.mark.spec("GPU-13")
def test_a_part_alone_has_all_namespaces_in_force() -> None:
    text = '<a xmlns="urn:a" xmlns:p="urn:a" xmlns:q="urn:b" n="1"><p:b xmlns:p="urn:b"><c><d/></c></p:b></a>'
    root = parse(text.encode(), spaces=SPACES)
    (inner,) = root.elements
    assert canonical(inner).decode() == ('<p:b xmlns="urn:a" xmlns:p="urn:b" xmlns:q="urn:b"><c><d></d></c></p:b>')
    (third,) = inner.elements
    assert canonical(third).decode() == '<c xmlns="urn:a" xmlns:p="urn:b" xmlns:q="urn:b"><d></d></c>'


@pytest.mark.spec("GPU-13")
def test_a_part_can_be_left_out() -> None:
    root = parse(b'<a> <b><c/></b>\n<b x="1">y</b>z</a>', spaces=SPACES)
    first, second = (e for e in root.children if isinstance(e, Element))
    assert canonical(root, without=first) == b'<a> \n<b x="1">y</b>z</a>'
    assert canonical(root, without=second) == b"<a> <b><c></c></b>\nz</a>"


BOMB = '<!DOCTYPE a [<!ENTITY x "lol">' + "".join(
    f'<!ENTITY x{n} "{"&x" + (str(n - 1) if n else "") + ";"}">' for n in range(9)
) + "]><a>&x8;</a>"  # fmt: skip
HOSTILE = {
    "billion laughs": BOMB,
    "quadratic blow-up": '<!DOCTYPE a [<!ENTITY x "' + "y" * 5000 + '">]><a>' + "&x;" * 5000 + "</a>",
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>',
    "parameter entity": '<!DOCTYPE a [<!ENTITY % x SYSTEM "http://example.org/x.dtd"> %x;]><a/>',
    "external document type": '<!DOCTYPE a SYSTEM "http://example.org/x.dtd"><a/>',
    "document type alone": "<!DOCTYPE a><a/>",
    "default attribute": '<!DOCTYPE a [<!ATTLIST a b CDATA "1">]><a/>',
    "entity that is not declared": "<a>&x;</a>",
    "entity of XML's own": "<a>&amp;</a>",
    "character reference": "<a b='&#10;'/>",
    "hexadecimal character reference": "<a>&#x41;</a>",
    "comment": "<a><!-- x --></a>",
    "comment within a text": "<a>MII<!---->C</a>",
    "comment within a name": "<a<!-- -->b/>",
    "comment before": "<!-- x --><a/>",
    "comment behind": "<a/><!-- x -->",
    "CDATA": "<a><![CDATA[x]]></a>",
    "processing instruction": "<a><?x y?></a>",
    "stylesheet": '<?xml-stylesheet href="x"?><a/>',
    "XML declaration": '<?xml version="1.0"?><a/>',
    "XML 1.1": '<?xml version="1.1"?><a/>',
    "another encoding": b'<?xml version="1.0" encoding="UTF-7"?><a/>',
    "UTF-16": "<a/>".encode("utf-16"),
    "UTF-32": "<a/>".encode("utf-32"),
    "byte order mark": b"\xef\xbb\xbf<a/>",
    "not ASCII": "<a>\N{LATIN SMALL LETTER E WITH ACUTE}</a>",
    "overlong": b"<a>\xc0\xbc</a>",
    "zero byte": b"<a>\0</a>",
    "zero byte behind": b"<a/>\0",
    "control character": b"<a>\x1b</a>",
    "delete": b"<a>\x7f</a>",
    "carriage return": b"<a>\r\n</a>",
    "vertical tab": b"<a\x0bb='1'/>",
    "nothing": "",
    "white space alone": " \n",
    "text alone": "x",
    "text before": "x<a/>",
    "text behind": "<a/>x",
    "second root": "<a/><a/>",
    "cut short": "<a><b></b>",
    "wrong end": "<a></b>",
    "interleaved": "<a><b></a></b>",
    "end alone": "</a>",
    "less than in a value": "<a b='<'/>",
    "value without quotes": "<a b=1/>",
    "attribute without value": "<a b/>",
    "attribute twice": "<a b='1' b='2'/>",
    "attribute twice by its namespace": '<a xmlns:p="urn:a" xmlns:q="urn:a" p:b="1" q:b="2"/>',
    "prefix that is not declared": "<p:a/>",
    "prefix that is declared elsewhere": '<a><b xmlns:p="urn:a"/><p:c/></a>',
    "prefix of an attribute that is not declared": "<a p:b='1'/>",
    "prefix xml": "<a xml:lang='en'/>",
    "xml:base": "<a xml:base='http://example.org/'/>",
    "xml:id": "<a xml:id='x'/>",
    "xml:space": "<a xml:space='preserve'/>",
    "element of prefix xml": "<xml:a/>",
    "element of prefix xmlns": "<xmlns:a/>",
    "prefix xml declared": '<a xmlns:xml="urn:a"/>',
    "prefix xmlns declared": '<a xmlns:xmlns="urn:a"/>',
    "prefix declared as nothing": '<a xmlns:p=""/>',
    "default namespace taken back": '<a xmlns="urn:a"><b xmlns=""/></a>',
    "declaration of an empty prefix": '<a xmlns:="urn:a"/>',
    "declaration of a prefix with a colon": '<a xmlns:p:q="urn:a"/>',
    "other namespace": '<a xmlns="urn:c"/>',
    "relative namespace": '<a xmlns="a"/>',
    "namespace with white space": '<a xmlns="urn:a "/>',
    "name with two colons": '<a xmlns:p="urn:a"><p:b:c/></a>',
    "name that begins with a colon": "<:a/>",
    "name that ends with a colon": '<a xmlns:p="urn:a" p:="1"/>',
    "name that begins with a digit": "<1a/>",
}


@pytest.mark.spec("GPU-12", "GPU-13")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_are_refused(name: str) -> None:
    refused(HOSTILE[name])


@pytest.mark.spec("GPU-12", "GPU-13")
def test_a_bomb_costs_nothing() -> None:
    begin = time.monotonic()
    tracemalloc.start()
    refused(BOMB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - begin < 1
    assert peak < 2**20


@pytest.mark.spec("GPU-12")
def test_the_largest_document() -> None:
    frame = "<a></a>"
    assert parse(b"<a>" + b"x" * (MAX_SIZE - len(frame)) + b"</a>", spaces=SPACES)
    refused("<a>" + "x" * (MAX_SIZE - len(frame) + 1) + "</a>")
    # One attribute may take it all.
    assert again('<a b="' + "x" * (MAX_SIZE - 20) + '"/>')
    refused('<a b="' + "x" * MAX_SIZE + '"/>')


@pytest.mark.spec("GPU-13")
def test_bounds() -> None:
    assert again("<a>" * MAX_DEPTH + "</a>" * MAX_DEPTH)
    refused("<a>" * (MAX_DEPTH + 1) + "</a>" * (MAX_DEPTH + 1))
    refused("<a>" * 50_000)
    assert again("<a>" + "<b/>" * (MAX_ELEMENTS - 1) + "</a>")
    refused("<a>" + "<b/>" * MAX_ELEMENTS + "</a>")
    many = [f' b{n}="1"' for n in range(MAX_ATTRIBUTES + 1)]
    assert again(f"<a{''.join(many[1:])}/>")
    refused(f"<a{''.join(many)}/>")
    refused("<a" + "".join(f' b{n}="1"' for n in range(20_000)) + "/>")


def test_random_changes_give_a_document_or_a_format_error() -> None:
    chance = random.Random(3)
    text = CANONICAL["declarations that change"][0].encode()
    for _ in range(2000):
        changed = bytearray(text)
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(len(text))] = chance.randrange(256)
        try:
            root = parse(bytes(changed), spaces=SPACES)
        except FormatError:
            continue
        # The canonical form is a document of the same meaning, and its own canonical form.
        form = canonical(root)
        if b"&" not in form:
            assert canonical(parse(form, spaces=SPACES)) == form
