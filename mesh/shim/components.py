"""JSON schemas of models, as the OpenAPI document keeps them, with the docstrings in them.

A field is described by the docstring below it. Does not know which endpoint uses a model.
"""

import ast
import inspect
import textwrap
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


def attribute_docstrings(documented: type) -> dict[str, str]:
    """Return what stands below the attributes of a class and of its parents, each on one line."""
    found: dict[str, str] = {}
    for one in reversed(documented.__mro__):
        if one.__module__.partition(".")[0] not in ("builtins", "pydantic", "enum"):
            found |= _own_docstrings(one)
    return found


class _Documented(GenerateJsonSchema):
    """Takes descriptions from docstrings, and leaves out titles that only repeat a name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        made = super().model_schema(schema)
        made.pop("title", None)
        made["description"] = "\n\n".join(_paragraphs(schema["cls"]))
        docstrings = attribute_docstrings(schema["cls"])
        for name, described in made.get("properties", {}).items():
            if name in docstrings:
                described.setdefault("description", docstrings[name])
        return made

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        made = super().enum_schema(schema)
        made.pop("title", None)
        docstrings = attribute_docstrings(schema["cls"])
        lines = [
            f"- `{one.value}`: {docstrings[one.name]}"
            for one in schema["members"]
            if isinstance(one, Enum) and one.name in docstrings
        ]
        made["description"] = "\n".join([first_paragraph(schema["cls"]), "", *lines]).strip()
        return made


def _paragraphs(documented: type) -> list[str]:
    return [" ".join(one.split()) for one in (inspect.getdoc(documented) or "").split("\n\n")]


def _own_docstrings(documented: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(documented))
    except (OSError, TypeError):
        return {}
    (definition,) = ast.parse(source).body
    body = definition.body if isinstance(definition, ast.ClassDef) else []
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
