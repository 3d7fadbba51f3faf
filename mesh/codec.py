"""Bytes to wire models and back, with orjson and pydantic.

Does not know subjects or headers. Errors name the field, never show a traceback.
"""

from typing import Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from mesh.errors import InvalidInputError, ProtocolError

_TYPE_NAMES: Final = {"str", "int", "float", "bool", "none"}

Model = TypeVar("Model", bound=BaseModel)


def dumps(value: Any) -> bytes:
    """Encode plain data as JSON."""
    return orjson.dumps(value)


def loads(data: bytes) -> Any:
    """Decode JSON.

    Raises:
        InvalidInputError: `data` is not JSON (UTF-8, no NaN, one value).
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidInputError(f"the body is not JSON: {error}", field="body") from None


def encode(model: BaseModel) -> bytes:
    """Encode a wire model as JSON."""
    return orjson.dumps(model.model_dump(mode="json"))


def decode(model: type[Model], data: bytes, *, subject: str = "") -> Model:
    """Decode what a peer of the mesh sent.

    Raises:
        ProtocolError: the bytes do not fit `model`.
    """
    try:
        return model.model_validate(orjson.loads(data))
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"not JSON: {error}", subject=subject) from None
    except ValidationError as error:
        raise ProtocolError(_first_complaint(error)[1], subject=subject) from None


def validate(model: type[Model], value: Any) -> Model:
    """Check data that a user sent.

    Raises:
        InvalidInputError: it does not fit `model`; `field` is the first place that does not.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        field, message = _first_complaint(error)
        raise InvalidInputError(message, field=field) from None


def _first_complaint(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "model_type" and not first["loc"]:
        return "body", "body: must be a JSON object"
    # In a union pydantic ends the place with the type it tried: of no use to a caller.
    parts = [str(part) for part in first["loc"]]
    while len(parts) > 1 and (parts[-1] in _TYPE_NAMES or "[" in parts[-1]):
        parts.pop()
    field = ".".join(parts) or "body"
    return field, f"{field}: {first['msg']}"
