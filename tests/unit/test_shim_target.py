"""Whom a chat request is for, and from."""

from typing import Any

import pytest

from mesh.errors import InvalidIdError, InvalidInputError
from mesh.shim.target import Source, Target, read_source, read_target


def read_both(fields: dict[str, Any], headers: dict[str, str]) -> None:
    read_target(fields.get("model", ""), fields, headers)
    read_source(fields, headers)


@pytest.mark.parametrize(
    ("fields", "headers", "target"),
    [
        ({"model": "solarius"}, {}, Target("solarius")),
        ({"model": "solarius@node2"}, {}, Target("solarius", "node2")),
        ({"model": "solarius", "target_node": "node2"}, {}, Target("solarius", "node2")),
        ({"model": "solarius", "target_node": ""}, {}, Target("solarius")),
        ({"model": "solarius", "target_node": None}, {}, Target("solarius")),
        ({"model": "gpt-4.1", "agent_id": "solarius"}, {}, Target("solarius")),
        ({"agent_id": "solarius"}, {}, Target("solarius")),
        ({"model": "gpt-4.1"}, {"x-mesh-agent": "solarius"}, Target("solarius")),
        ({"model": "solarius"}, {"x-mesh-target-node": "node2"}, Target("solarius", "node2")),
        ({"model": "solarius"}, {"x-mesh-agent": ""}, Target("solarius")),
        ({"model": "solarius", "agent_id": None}, {}, Target("solarius")),
        ({"agent_id": "solarius"}, {"x-mesh-agent": "solarius"}, Target("solarius")),
        # A model beside an agent_id names no target, so its node is none either.
        (
            {"model": "daarwizz@node1", "agent_id": "solarius", "target_node": "node2"},
            {},
            Target("solarius", "node2"),
        ),
        ({"model": "a@n", "target_node": "n"}, {"x-mesh-target-node": "n"}, Target("a", "n")),
    ],
)
def test_the_ways_to_name_a_target(
    fields: dict[str, Any], headers: dict[str, str], target: Target
) -> None:
    """A body field, a header, or the model."""
    assert read_target(fields.get("model", ""), fields, headers) == target


BAD_IDS = ["a.b", "*", ">", "a b", "a\n", "x" * 33, "-a", "A", "ключ"]


@pytest.mark.parametrize("bad", [*BAD_IDS, "", "@", "a@", "@n", "a@b@c", "a@B"])
def test_a_model_that_cannot_be_is_blamed(bad: str) -> None:
    """Nothing that is no id comes near a subject."""
    with pytest.raises(InvalidInputError) as caught:
        read_target(bad, {}, {})
    assert caught.value.field == "model"


@pytest.mark.parametrize("bad", [*BAD_IDS, ""])
def test_an_agent_id_that_cannot_be_is_blamed(bad: str) -> None:
    """An empty `agent_id` is no way to say nothing."""
    with pytest.raises(InvalidIdError) as caught:
        read_target("solarius", {"agent_id": bad}, {})
    assert caught.value.field == "agent_id"


@pytest.mark.parametrize("field", ["target_node", "source_agent", "source_node"])
@pytest.mark.parametrize("bad", BAD_IDS)
def test_other_ids_are_checked_too(field: str, bad: str) -> None:
    """The field to blame is the one that holds the value."""
    asked = {"model": "solarius", field: bad}
    with pytest.raises(InvalidIdError) as caught:
        read_both(asked, {})
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["agent_id", "target_node", "source_agent", "source_node"])
@pytest.mark.parametrize("bad", [7, True, ["solarius"], {"id": "solarius"}])
def test_a_field_of_the_wrong_type_is_blamed(field: str, bad: Any) -> None:
    """A number is not read as a name."""
    asked = {"model": "solarius", field: bad}
    with pytest.raises(InvalidInputError) as caught:
        read_both(asked, {})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "headers", "field"),
    [
        ({"agent_id": "solarius"}, {"x-mesh-agent": "daarwizz"}, "agent_id"),
        ({"model": "a@n1", "target_node": "n2"}, {}, "target_node"),
        ({"model": "a@n1"}, {"x-mesh-target-node": "n2"}, "X-Mesh-Target-Node"),
        ({"model": "a", "target_node": "n1"}, {"x-mesh-target-node": "n2"}, "target_node"),
        ({"model": "a", "source_agent": "b"}, {"x-mesh-source-agent": "c"}, "source_agent"),
    ],
)
def test_two_different_names_are_refused(
    fields: dict[str, Any], headers: dict[str, str], field: str
) -> None:
    """The door does not choose between them."""
    asked = fields
    with pytest.raises(InvalidInputError) as caught:
        read_both(asked, headers)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "headers", "source"),
    [
        ({}, {}, Source()),
        ({"source_agent": "", "source_node": None}, {}, Source()),
        ({"source_agent": "daarwizz", "source_node": "node1"}, {}, Source("daarwizz", "node1")),
        ({}, {"x-mesh-source-agent": "daarwizz"}, Source("daarwizz")),
        ({"source_agent": "daarwizz"}, {"x-mesh-source-node": "n1"}, Source("daarwizz", "n1")),
    ],
)
def test_the_ways_to_name_a_source(
    fields: dict[str, Any], headers: dict[str, str], source: Source
) -> None:
    """Body fields or headers, and neither has to be there."""
    assert read_source(fields, headers) == source
