"""The ground of the wire: one base model, and the grammar of ids.

Does no I/O and knows no subjects; `mesh.subjects` builds those from ids checked here.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, WithJsonSchema

ID_PATTERN = re.compile(r"[a-z0-9]([a-z0-9_-]{0,30}[a-z0-9])?")
"""Agents, nodes and callers: a subject token, a consumer name and a KV key at once."""

ID_RULE = "1 to 32 characters of a-z, 0-9, '-' and '_', starting and ending with a letter or digit"

REMEMBERED = 10_000
"""Every message names several ids, and they are mostly the same."""
_valid: set[str] = set()


def is_id(text: str) -> bool:
    """Tell whether `text` is a valid id. The whole text must match: `a\\n` is none."""
    if text in _valid:
        return True
    if ID_PATTERN.fullmatch(text) is None:
        return False
    if len(_valid) < REMEMBERED:
        _valid.add(text)
    return True


def _require_id(text: str) -> str:
    if not is_id(text):
        raise ValueError(f"not a valid id ({ID_RULE})")
    return text


Id = Annotated[
    str,
    AfterValidator(_require_id),
    WithJsonSchema({"type": "string", "pattern": f"^{ID_PATTERN.pattern}$"}),
]
InstanceId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""A process: one token of a subject and of a key."""


class WireModel(BaseModel):
    """A frozen message body. Fields it does not know are ignored, so that peers may be newer."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        # Whoever writes one of these writes all of its fields.
        json_schema_serialization_defaults_required=True,
    )
