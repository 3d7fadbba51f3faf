"""What schemathesis is told of the door: whom it can ask, and one check of ours.

Loaded by the schemathesis process that `tests/integration/test_shim_fuzzed.py` starts. Left to
itself it would ask agents that are not there, and look at calls that never were.
"""

import os
from typing import Any

import schemathesis
from schemathesis.checks import CheckContext
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.generation.case import Case
from schemathesis.hooks import HookContext

AGENT = os.environ["FUZZED_AGENT"]
CALL = os.environ["FUZZED_CALL"]
NODE = "node1"


def _is_chosen(value: Any) -> bool:
    """Pick two of three, always the same."""
    return len(repr(value)) % 3 != 0


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Ask an agent that is there."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and _is_chosen(body):
        kept = {name: it for name, it in body.items() if name not in ("agent_id", "target_node")}
        return {**kept, "model": AGENT}
    return body


@schemathesis.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    """Look at what is there."""
    if not path_parameters or not _is_chosen(path_parameters):
        return path_parameters
    path = context.operation.path if context.operation is not None else ""
    is_call = "/calls/" in path or "/responses/" in path
    known = CALL if is_call else NODE if "/node/" in path else AGENT
    return dict.fromkeys(path_parameters, known)


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Do not say in most requests that they are the same one, and ask whom there is."""
    if case.headers and _is_chosen(case.body):
        case.headers.pop("Idempotency-Key", None)
        for name, known in (("X-Mesh-Agent", AGENT), ("X-Mesh-Target-Node", NODE)):
            if name in case.headers:
                case.headers[name] = known


@schemathesis.check
def documented_code(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """Fail when an error has a code that the document does not list for its status."""
    if response.status_code < 400 or case.method.upper() not in ("GET", "POST", "DELETE"):
        return
    described = case.operation.definition.raw["responses"].get(str(response.status_code), {})
    if "$ref" in described:
        name = described["$ref"].rpartition("/")[2]
        described = case.operation.schema.raw_schema["components"]["responses"][name]
    code = response.json()["error"]["code"]
    if described and code not in described["x-codes"]:
        told = f"{response.status_code} with the code {code!r}"
        raise Failure(operation=case.operation.label, title="Undocumented code", message=told)
