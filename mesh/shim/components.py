"""JSON schemas of models, as the OpenAPI document keeps them, with the docstrings in them.

A field is described by the docstring below it. Does not know which endpoint uses a model.
"""

import ast
import inspect
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from itertools import pairwise
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, models_json_schema
from pydantic_core import core_schema

REF_TEMPLATE: Final = "#/components/schemas/{model}"

Mode = Literal["validation", "serialization"]
"""Whether a body is read here, or written."""
Use = tuple[type[BaseModel], Mode]


def make_components(uses: Iterable[Use]) -> tuple[Mapping[Use, JsonSchemaValue], dict[str, Any]]:
    """Return a reference for each use of a model, and the schemas that they refer to, by name."""
    wanted = list(dict.fromkeys(uses))
    references, found = models_json_schema(
        wanted, ref_template=REF_TEMPLATE, schema_generator=_Documented
    )
    named = {use: references[use] for use in wanted}
    return named, dict(sorted(found.get("$defs", {}).items()))


def first_paragraph(documented: type) -> str:
    """Return what the docstring of a class says first, on one line."""
    return _paragraphs(documented)[0]


class AttributeDocstrings:
    """What stands below the attributes of classes, read from their modules, each of them once."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, dict[str, str]]] = {}

    def of(self, documented: type) -> dict[str, str]:
        """Return the docstrings of a class and of its parents by attribute, each on one line."""
        found: dict[str, str] = {}
        for one in reversed(documented.__mro__):
            if one.__module__.partition(".")[0] not in ("builtins", "pydantic", "enum"):
                found |= self._module(one.__module__).get(one.__name__, {})
        return found

    def _module(self, name: str) -> dict[str, dict[str, str]]:
        if name not in self._modules:
            self._modules[name] = _read_module(name)
        return self._modules[name]


class _Documented(GenerateJsonSchema):
    """Takes descriptions from docstrings, and leaves out titles that only repeat a name."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._docstrings = AttributeDocstrings()

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        made.pop("title", None)
        made["description"] = "\n\n".join(_paragraphs(schema["cls"]))
        docstrings = self._docstrings.of(schema["cls"])
        for name, described in made.get("properties", {}).items():
            if name in docstrings:
                described.setdefault("description", docstrings[name])
        return made

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        made = super().enum_schema(schema)
        made.pop("title", None)
        docstrings = self._docstrings.of(schema["cls"])
        lines = [
            f"- `{one.value}`: {docstrings[one.name]}"
            for one in schema["members"]
            if isinstance(one, Enum) and one.name in docstrings
        ]
        made["description"] = "\n".join([first_paragraph(schema["cls"]), "", *lines]).strip()
        return made


def _paragraphs(documented: type) -> list[str]:
    return [" ".join(one.split()) for one in (inspect.getdoc(documented) or "").split("\n\n")]


def _read_module(name: str) -> dict[str, dict[str, str]]:
    try:
        source = inspect.getsource(sys.modules[name])
    except OSError:
        return {}  # Installed without its sources: there is nothing to read.
    classes = [one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)]
    return {one.name: _docstrings(one.body) for one in classes}


def _docstrings(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for named, text in pairwise(body):
        target = named.target if isinstance(named, ast.AnnAssign) else None
        if isinstance(named, ast.Assign):
            target = named.targets[0] if isinstance(named.targets[0], ast.Name) else None
        if (
            isinstance(target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[target.id] = " ".join(text.value.value.split())
    return found
