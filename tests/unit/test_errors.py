"""Errors carry facts, and come out on the other side as the class that went in."""

import copy
import pickle

import pytest

from mesh import errors
from mesh.errors import AgentFailedError, CallTimeoutError, MeshError, error_from_wire


def tree() -> list[type[MeshError]]:
    """Return every error class of the mesh."""
    found = [MeshError]
    for one in found:
        found += one.__subclasses__()
    return [one for one in found if one.__module__ == "mesh.errors"]


def test_codes_are_unique() -> None:
    """A code names one class."""
    codes = [one.code for one in tree()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", tree())
def test_every_error_survives_the_wire(kind: type[MeshError]) -> None:
    """Code, message and fields give back the same class."""
    back = error_from_wire(kind.code, "why", {"agent": "a"})
    assert (type(back), str(back), back.agent) == (kind, "why", "a")
    assert kind.__name__ == "MeshError" or kind.__name__.endswith("Error")
    assert kind.__name__ in str(errors.__doc__) or kind is MeshError


def test_an_unknown_code_becomes_a_failed_agent() -> None:
    """A newer peer's error is still an error, and keeps its code."""
    back = error_from_wire("brand_new", "why", {"x": 1})
    assert isinstance(back, AgentFailedError)
    assert (back.remote_code, back.x) == ("brand_new", 1)


def test_users_errors_travel_too() -> None:
    """A subclass that an application defines is found by its code."""

    class KitchenError(MeshError):
        code = "test_kitchen"

    assert isinstance(error_from_wire("test_kitchen", "hot", {}), KitchenError)


def test_fields_are_attributes_and_nothing_else_is() -> None:
    """A field that was not given is missing, also for copy and pickle."""
    error = CallTimeoutError("late", timeout_s=3)
    assert (error.timeout_s, isinstance(error, TimeoutError)) == (3, True)
    with pytest.raises(AttributeError):
        _ = error.agent
    assert copy.copy(error).args == error.args
    assert str(pickle.loads(pickle.dumps(MeshError("x")))) == "x"
