"""The conversation of a Responses request as chat messages.

Pure translation: items into messages, parts into parts. What chat has no word for is refused by
name, but for reasoning, which no agent needs back. Options are translated by
`mesh.shim.response_options`. Source of the shapes: the OpenAI API reference, "Create a model
response" and "Create chat completion".
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from mesh import codec
from mesh.errors import InvalidInputError
from mesh.shim.status import UNSUPPORTED_PARAMETER
from schemas.responses import (
    AudioPart,
    FilePart,
    FunctionCallItem,
    FunctionOutputItem,
    ImagePart,
    MessageItem,
    RefusalPart,
    ResponseRequest,
    TextPart,
)

Model = TypeVar("Model", bound=BaseModel)
Message = dict[str, Any]
Part = dict[str, Any]

SEND_WHOLE: Final = "nothing is remembered here: send the whole conversation in `input`"


def chat_messages(request: ResponseRequest) -> list[Message]:
    """Return instructions and input as chat messages.

    Calls of functions that stand together become one message of the assistant, with the text
    before them: so chat models expect them.

    Raises:
        InvalidInputError: an item is none, or is not served; `field` is its place.
    """
    messages: list[Message] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    if not request.input:
        raise InvalidInputError("input: is empty; say something", field="input")
    for number, item in enumerate(request.input):
        _add_item(messages, item, f"input.{number}")
    if not messages:
        raise InvalidInputError("input: has nothing that an agent could read", field="input")
    return messages


def checked(model: type[Model], value: Any, place: str) -> Model:
    """Check a part of a request that stands at `place`.

    Raises:
        InvalidInputError: it does not fit `model`; `field` is the place that does not.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(f"{place}: must be an object", field=place)
    try:
        return codec.validate(model, value)
    except InvalidInputError as error:
        field = f"{place}.{error.field}"
        raise InvalidInputError(f"{place}.{error.message}", field=field) from None


def unsupported(field: str, message: str) -> InvalidInputError:
    """Make the error about a field that is valid, but not served here."""
    return InvalidInputError(f"{field}: {message}", field=field, reason=UNSUPPORTED_PARAMETER)


def _add_item(messages: list[Message], item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise InvalidInputError(f"{place}: must be an object", field=place)
    match item.get("type") or ("message" if "role" in item else "item_reference"):
        case "message":
            messages.append(_message(checked(MessageItem, item, place), place))
        case "function_call":
            _add_call(messages, checked(FunctionCallItem, item, place))
        case "function_call_output":
            messages.append(_output(checked(FunctionOutputItem, item, place), place))
        case "reasoning":
            pass
        case "item_reference":
            raise unsupported(
                place,
                "refers to an item, and nothing is remembered here: send the whole item (some "
                "clients do with `store: false`)",
            )
        case kind:
            raise unsupported(f"{place}.type", f"items of type {kind!r:.80} are not served here")


def _message(item: MessageItem, place: str) -> Message:
    return {"role": item.role, "content": _content(item.content, f"{place}.content")}


def _add_call(messages: list[Message], item: FunctionCallItem) -> None:
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _output(item: FunctionOutputItem, place: str) -> Message:
    content = _content(item.output, f"{place}.output")
    return {"role": "tool", "tool_call_id": item.call_id, "content": content}


def _content(given: str | list[dict[str, Any]], place: str) -> str | list[Part]:
    """Return content as text where it is one, as not every agent reads parts."""
    if isinstance(given, str):
        return given
    parts = [_part(part, f"{place}.{number}") for number, part in enumerate(given)]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: Mapping[str, Any], place: str) -> Part:
    kind = part.get("type")
    translate = _PARTS.get(kind) if isinstance(kind, str) else None
    if translate is None:
        raise unsupported(f"{place}.type", f"parts of type {kind!r:.80} are not served here")
    return translate(part, place)


def _text(part: Mapping[str, Any], place: str) -> Part:
    return {"type": "text", "text": checked(TextPart, part, place).text}


def _refusal(part: Mapping[str, Any], place: str) -> Part:
    return {"type": "refusal", "refusal": checked(RefusalPart, part, place).refusal}


def _image(part: Mapping[str, Any], place: str) -> Part:
    if part.get("file_id") is not None:
        raise unsupported(f"{place}.file_id", "no files are kept here: send `image_url`")
    image = checked(ImagePart, part, place)
    detail = {} if image.detail is None else {"detail": image.detail}
    return {"type": "image_url", "image_url": {"url": image.image_url, **detail}}


def _file(part: Mapping[str, Any], place: str) -> Part:
    if part.get("file_url") is not None:
        raise unsupported(f"{place}.file_url", "chat has no such field: send `file_data`")
    file = checked(FilePart, part, place)
    if file.file_data is None and file.file_id is None:
        raise InvalidInputError(f"{place}.file_data: is missing", field=f"{place}.file_data")
    known = FilePart.model_fields.keys()
    return {"type": "file", "file": file.model_dump(include=set(known), exclude_none=True)}


def _audio(part: Mapping[str, Any], place: str) -> Part:
    return {"type": "input_audio", "input_audio": checked(AudioPart, part, place).input_audio}


_PARTS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Part]]] = {
    "input_text": _text,
    "output_text": _text,
    "text": _text,
    "refusal": _refusal,
    "input_image": _image,
    "input_file": _file,
    "input_audio": _audio,
}
