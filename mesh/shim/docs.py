"""`GET /docs`: the OpenAPI document as a page, with commands to copy.

The commands name the server as the reader has found it, and an agent that is there.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from starlette.types import Receive, Scope, Send

from mesh.shim.door import Door
from mesh.shim.guard import is_logged_in, is_stranger, may_call
from mesh.shim.http import base_url
from mesh.shim.operations import EXAMPLE_AGENT, EXAMPLE_NODE, Operation, Tag
from mesh.shim.pages import Pages, root_of
from mesh.shim.reference import Described, read_chapters, read_models
from schemas.registry import State

Json = Mapping[str, Any]

PAGES_KEPT: Final = 32
_PLAIN_URL: Final = re.compile(r"https?://[A-Za-z0-9.:\[\]_-]+")


class Docs:
    """The endpoint."""

    operations = (
        Operation(
            "getDocs",
            "GET",
            "/docs",
            Tag.DOCUMENTATION,
            "Read the documentation as a page",
            is_open=True,
            is_listed=False,
        ),
    )

    def __init__(self, door: Door, document: Json, pages: Pages) -> None:
        self._door = door
        self._pages = pages
        self._document = document
        self._chapters = read_chapters(document)
        self._models = read_models(document)
        self._rendered: dict[tuple[str, ...], bytes] = {}
        """By address and names: rendering stops every other request for 15 ms."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        page = self._page(
            root_of(scope), _shown_url(scope), self._names(scope), is_logged_in(scope)
        )
        await self._pages.send(scope, send, page)

    def _page(self, root: str, url: str, names: Mapping[str, str], has_login: bool) -> bytes:
        key = (root, url, str(has_login), *names.values())
        if (page := self._rendered.get(key)) is None:
            if len(self._rendered) >= PAGES_KEPT:
                self._rendered.clear()
            commands = Commands(self._document, url, names)
            page = self._rendered[key] = self._render(root, commands, has_login)
        return page

    def _render(self, root: str, commands: "Commands", has_login: bool) -> bytes:
        context = {
            "root": root,
            "here": "/docs",
            "is_logged_in": has_login,
            "info": self._document["info"],
            "python": commands.python(),
            "chapters": self._chapters,
            "models": self._models,
            "commands": {
                one.id: list(commands.of(one))
                for chapter in self._chapters
                for one in chapter.operations
            },
        }
        return self._pages.render("docs.html", context)

    def _names(self, scope: Scope) -> Mapping[str, str]:
        """Return what to say for the names in examples, as far as it is the reader's business."""
        if is_stranger(scope):
            return {}
        return {EXAMPLE_AGENT: self._agent(scope), EXAMPLE_NODE: self._door.caller.node}

    def _agent(self, scope: Scope) -> str:
        online = [
            one.id
            for one in self._door.client.directory.standings()
            if one.state is State.ONLINE and may_call(scope, one.id)
        ]
        return online[0] if online and EXAMPLE_AGENT not in online else EXAMPLE_AGENT


@dataclass(frozen=True, slots=True)
class Command:
    """Lines for a shell, and what they show."""

    title: str
    text: str


class Commands:
    """Writes commands for the operations of a document; `names` stand in for those in examples."""

    def __init__(self, document: Json, base: str, names: Mapping[str, str]) -> None:
        self._base = base
        self._needs_key = {} not in document["security"]
        self._names = names
        self._operations = {
            one["operationId"]: (method.upper(), path, one)
            for path, methods in document["paths"].items()
            for method, one in methods.items()
        }

    def of(self, described: Described) -> Iterator[Command]:
        """Yield the commands of one operation: one for each example of a body, or one."""
        examples = self._examples(described.raw)
        before = self._first_call(described.id)
        for title, body in (examples or {"": None}).items():
            yield Command(title, before + self._curl(described.id, body))

    def python(self) -> str:
        """Return a program for OpenAI's client."""
        key = 'os.environ["MESH_API_KEY"]' if self._needs_key else '"none"'
        return "\n".join(
            [
                *(["import os"] if self._needs_key else []),
                "from openai import OpenAI",
                "",
                "client = OpenAI(",
                f'    base_url="{self._base}/v1",',
                f"    api_key={key},",
                ")",
                "answer = client.chat.completions.create(",
                f'    model="{self._localized(EXAMPLE_AGENT)}",',
                '    messages=[{"role": "user", "content": "Hello!"}],',
                ")",
                "print(answer.choices[0].message.content)",
            ]
        )

    def _first_call(self, operation: str) -> str:
        """Return the lines that make a call for `operation` to work on, if it needs one."""
        for source, (_, _, one) in self._operations.items():
            for reply in one["responses"].values():
                if link := reply.get("links", {}).get(operation):
                    body = self._examples(one)[link["x-example"]]
                    return f"id=$({self._curl(source, body)} | cut -d'\"' -f4)\n"
        return ""

    def _curl(self, operation: str, body: Any) -> str:
        method, path, one = self._operations[operation]
        is_streamed = isinstance(body, dict) and body.get("stream") is True
        if _media_types(one) == {"text/event-stream"}:
            is_streamed = True
        words = ["curl -sN" if is_streamed else "curl -s"]
        if method not in ("GET", "POST") or (method == "POST" and body is None):
            words.append(f"-X {method}")
        lines = [" ".join([*words, self._url(path, one)])]
        if self._needs_key and one.get("security") != []:
            lines.append('-H "Authorization: Bearer $MESH_API_KEY"')
        if body is not None:
            lines.append("-H 'content-type: application/json'")
            lines.append(f"-d {shlex.quote(_in_lines(body))}")
        return " \\\n  ".join(lines)

    def _url(self, path: str, one: Json) -> str:
        query = {}
        for parameter in one.get("parameters", ()):
            example = self._localized(parameter.get("example", "$id"))
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", example)
            elif parameter["in"] == "query" and "example" in parameter:
                query[parameter["name"]] = example
        url = self._base + path + (f"?{urlencode(query)}" if query else "")
        return f'"{url}"' if re.search(r"[$?&\[\]]", url) else url

    def _examples(self, one: Json) -> dict[str, Any]:
        content = one.get("requestBody", {}).get("content", {}).get("application/json", {})
        examples = content.get("examples", {})
        return {name: self._localized(it["value"]) for name, it in examples.items()}

    def _localized(self, value: Any) -> Any:
        """Put what is there in the place of what the examples name."""
        if isinstance(value, dict):
            return {name: self._localized(one) for name, one in value.items()}
        return self._names.get(value, value) if isinstance(value, str) else value


def _in_lines(body: Json) -> str:
    """Write an object as JSON, each of its fields on a line of its own."""
    fields = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in body.items()]
    return "{" + ",\n    ".join(fields) + "}"


def _media_types(one: Json) -> set[str]:
    return {
        media
        for status, reply in one["responses"].items()
        if status.startswith("2")
        for media in reply.get("content", {})
    }


def _shown_url(scope: Scope) -> str:
    """Return our address as the reader's shell may read it."""
    url = base_url(scope)
    if _PLAIN_URL.fullmatch(url):
        return url
    host, port = scope["server"]
    return f"{scope['scheme']}://{f'[{host}]' if ':' in host else host}:{port}"
