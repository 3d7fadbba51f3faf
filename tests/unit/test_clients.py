"""The clients that the README says the door works with are those that the tests run."""

import re

import orjson

from tests.unit.test_floors import ROOT

ROW = re.compile(r"^\| (.+?) \| (\d+\.\d+\.\d+[\d., ]*) \| .+ \|$", re.MULTILINE)


def test_the_readme_names_the_versions_that_are_tested() -> None:
    """Those of constraints.txt, and of the lock of the JavaScript clients."""
    told = dict(ROW.findall((ROOT / "README.md").read_text()))
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    python = dict(line.split(" ")[0].split("==") for line in constraints if "==" in line)
    lock = orjson.loads((ROOT / "tests/node/package-lock.json").read_bytes())
    npm = {path.removeprefix("node_modules/"): one for path, one in lock["packages"].items()}
    assert told == {
        "openai (Python)": python["openai"],
        "openai-agents": python["openai-agents"],
        "pydantic-ai": python["pydantic-ai-slim"],
        "openai (npm)": npm["openai"]["version"],
        "ai (npm), with `@ai-sdk/openai-compatible`": ", ".join(
            npm[name]["version"] for name in ("ai", "@ai-sdk/openai-compatible")
        ),
    }


def test_the_lock_names_no_server() -> None:
    """npm takes the registry that the machine is set to."""
    assert "resolved" not in (ROOT / "tests/node/package-lock.json").read_text()
