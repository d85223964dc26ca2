"""The OpenAPI document of a host, and what it decides by itself: methods and their refusal.

Runs in the untrusted host. The document says what a host answers; what a mail is
says spec/mail.md.

Spec: spec/http.md section 3 (HTTP-8).
"""

from __future__ import annotations

import json
from typing import Any, Final

from conclave._mailheader import MAX_MAIL
from conclave.host.exchange import Scope, Send

PATH: Final = "/openapi.json"
_ERROR: Final = {
    "type": "object",
    "required": ["error", "detail"],
    "properties": {
        "error": {"type": "string", "description": "one word that programs read"},
        "detail": {"type": "string", "description": "what was wrong, what was expected, what to do"},
    },
}
_ERROR_REFERENCE: Final = {"$ref": "#/components/schemas/Error"}
_REASONS: Final = {
    "400": "format: not what this resource takes, or not an HTTP/1.1 request",
    "401": "capability: no box is claimed with it; claim again",
    "404": "no such resource",
    "405": "method: this resource does not take it; the Allow header has those that it takes",
    "408": "timeout: headers or body came too slowly",
    "409": "session: the enclave does not know it, verify the instance again; claimed: use a fresh reply key",
    "413": "too large: a body, by its announcement or on its way",
    "414": "too large: a request target",
    "417": "expectation: the one met is 100-continue",
    "422": "decryption: the enclave could not decrypt it",
    "429": "overloaded: the enclave or the host has no room; try later",
    "431": "too large: request line and headers",
    "501": "method, coding or upgrade: nothing here has it",
    "502": "enclave: it ended while it handled this",
    "503": "starting, stopping, overloaded or store: try again, or another host",
    "505": "version: HTTP/1.1 and HTTP/1.0 are spoken",
}
# What the server may answer to anything.
_ALWAYS: Final = ("400", "404", "405", "408", "413", "414", "417", "431", "501", "503", "505")


def _reply(description: str, media_type: str | None = None, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    if media_type is None:
        return {"description": description}
    return {"description": description, "content": {media_type: {"schema": schema or _BYTES}}}


_BYTES: Final = {"type": "string", "format": "binary"}
_NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}


def _operation(
    summary: str,
    status: str,
    reply: dict[str, Any],
    *refusals: str,
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    bearer: bool = False,
    unready: dict[str, Any] | None = None,
) -> dict[str, Any]:
    responses = {status: reply}
    for refusal in sorted({*_ALWAYS, *refusals}):
        responses[refusal] = _reply(_REASONS[refusal], "application/json", _ERROR_REFERENCE)
    if unready is not None:
        responses["503"] = unready
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": body}}}
    if parameters:
        operation["parameters"] = parameters
    if bearer:
        operation["security"] = [{"capability": []}]
    return operation


def _hexadecimal(name: str, digits: int) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": f"^[0-9a-f]{{{digits}}}$"},
    }


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


_INFO: Final = "application/vnd.conclave.instance-info"
_MAILS: Final = "application/vnd.conclave.mails"
_POSTS: Final = "application/vnd.conclave.posts"
_OK: Final = {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}}

_STATE: Final = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": "string"}, "reasons": {"type": "array"}},
}

DOCUMENT: Final[dict[str, Any]] = {
    "openapi": "3.1.0",
    "info": {
        "title": "Conclave host",
        "version": "1",
        "description": "The HTTP interface of a host, which nobody trusts: spec/http.md.",
    },
    "paths": {
        "/instance": {
            "get": _operation("Instance info of the enclave that runs", "200", _reply("claims.md section 4", _INFO))
        },
        "/mail": {
            "post": _operation(
                "Send a mail and receive its replies",
                "200",
                _reply("zero or more `size (4, BE) ‖ encrypted mail`, as they come", _MAILS),
                "409",
                "422",
                "429",
                "502",
                body={**_BYTES, "maxLength": MAX_MAIL, "description": "one encrypted mail (mail.md section 3)"},
            )
        },
        "/stream": {
            "post": _operation(
                "Send the next chunks of an upload",
                "204",
                _reply("the enclave has taken them"),
                "409",
                "422",
                "429",
                "502",
                body={**_BYTES, "description": "1 to 4 chunks of one stream, each `size (4, BE) ‖ chunk`"},
            )
        },
        "/challenge": {
            "post": _operation(
                "Have the enclave show that it lives",
                "200",
                _reply("enclave nonce (32) ‖ signature (64)", "application/octet-stream"),
                "429",
                body={**_BYTES, "minLength": 32, "maxLength": 32},
            )
        },
        "/instance/{digest}": {
            "get": _operation(
                "Instance info of a boot whose posted mail is kept here",
                "200",
                _reply("claims.md section 4", _INFO),
                parameters=[_hexadecimal("digest", 128)],
            )
        },
        "/outbox/{box}": {
            "post": _operation(
                "Claim a box with a capability",
                "204",
                _reply("who has these bytes has the box"),
                "409",
                body={**_BYTES, "minLength": 32, "maxLength": 32},
                parameters=[_hexadecimal("box", 32)],
            )
        },
        "/outbox": {
            "get": _operation(
                "Posted mail, as a list or (`Accept: text/event-stream`) as server-sent events",
                "200",
                _reply("zero or more `number (8, BE) ‖ size (4, BE) ‖ posted mail`", _POSTS),
                "401",
                "429",
                parameters=[_query("after", _NUMBER), _query("wait", {"type": "number", "minimum": 0, "maximum": 30})],
                bearer=True,
            ),
            "delete": _operation(
                "Remove mail below a number, all of it or from another one on",
                "204",
                _reply("it is removed"),
                "401",
                parameters=[{**_query("below", _NUMBER), "required": True}, _query("from", _NUMBER)],
                bearer=True,
            ),
        },
        "/health": {"get": _operation("Whether the enclave runs", "200", _reply("it does", "application/json", _OK))},
        "/healthz": {
            "get": _operation("Whether the process answers", "200", _reply("it does", "application/json", _STATE))
        },
        "/readyz": {
            "get": _operation(
                "Whether mail can be taken now",
                "200",
                _reply("it can", "application/json", _STATE),
                unready=_reply("not now, and why", "application/json", {"anyOf": [_STATE, _ERROR_REFERENCE]}),
            )
        },
        "/metrics": {
            "get": _operation(
                "Figures for Prometheus; 404 where operators have a port of their own",
                "200",
                _reply("text exposition format", "text/plain", {"type": "string"}),
            )
        },
        PATH: {
            "get": _operation("This document", "200", _reply("OpenAPI 3.1", "application/json", {"type": "object"}))
        },
    },
    "components": {
        "schemas": {"Error": _ERROR},
        "securitySchemes": {"capability": {"type": "http", "scheme": "bearer"}},
    },
}


def methods(path: str) -> tuple[str, ...] | None:
    """What a resource takes, as an Allow header says it; None if the document has no such path."""
    found = DOCUMENT["paths"].get(path)
    if found is None:
        # One template each: what follows is one part of the path.
        parent, _, name = path.rpartition("/")
        template = next((known for known in DOCUMENT["paths"] if known.startswith(parent + "/{")), None)
        if not (parent and name and template):
            return None
        found = DOCUMENT["paths"][template]
    names = [name.upper() for name in found]
    return (*names, *(["HEAD"] if "GET" in names else []), "OPTIONS")


async def answered(scope: Scope, send: Send) -> bool:
    """Answer a request that the document decides. A HEAD goes on as a GET whose body the server leaves out."""
    method, path = scope["method"], scope["path"]
    allowed = methods(path)
    if allowed is None:
        # No such resource: `routes` says so.
        return False
    if method == "OPTIONS":
        await _send(send, 204, b"", ", ".join(allowed))
    elif method not in allowed:
        detail = f"{path} takes {', '.join(allowed)}"
        await _send(send, 405, json.dumps({"error": "method", "detail": detail}).encode(), ", ".join(allowed))
    elif path == PATH:
        await _send(send, 200, json.dumps(DOCUMENT, ensure_ascii=False).encode())
    else:
        if method == "HEAD":
            scope["method"] = "GET"
        return False
    return True


async def _send(send: Send, status: int, body: bytes, allow: str = "") -> None:
    headers = [(b"allow", allow.encode())] if allow else []
    if status != 204:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
