"""The README is true: its agents run, its callers call, its tables are complete."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.cli import app
from mesh.settings import KNOWN_VARIABLES
from tests.acceptance.conftest import ROOT, Mesh, clean_environ, running_mesh

README = (ROOT / "README.md").read_text()
BLOCKS = {
    found[1]: found[0]
    for found in re.findall(r"```python\n(# (\w+\.py)\b.*?)```", README, re.DOTALL)
}


@dataclass(slots=True)
class Workshop:
    """A folder with the README's files in it, and the mesh they run on."""

    mesh: Mesh
    folder: Path

    async def python(self, name: str) -> str:
        """Run one of the files, and return what it prints."""
        environ = {**self.mesh.environ, "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(self.folder / name)),
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, output.decode()
        return output.decode()


@pytest.fixture(scope="module")
async def workshop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workshop]:
    """The README followed to the letter, but for the addresses: ours are free ports."""
    folder = tmp_path_factory.mktemp("readme")
    async with running_mesh(clean_environ(folder / "data")) as mesh:
        for name, code in BLOCKS.items():
            text = code.replace("nats://127.0.0.1:4222", mesh.nats_url)
            (folder / name).write_text(text.replace("http://127.0.0.1:9102/v1", mesh.http_url))
        environ = {"TEST_CWD": str(folder)}
        async with (
            mesh.start("run", "parrot:agent", "--node", "node1", **environ) as parrot,
            mesh.start("run", "guide:agent", **environ) as guide,
        ):
            await parrot.says("agent parrot runs on node1")
            await guide.says("agent guide runs")
            yield Workshop(mesh, folder)


async def test_the_first_agent_answers_all_three_ways(workshop: Workshop) -> None:
    """By command, by subject and over HTTP, as the page shows it."""
    done = await workshop.mesh.run("send", "parrot", "hello")
    assert done.out == "You said: hello\n"
    assert await workshop.python("by_subject.py") == "You said: hello\n"
    assert await workshop.python("openai_client.py") == "You said: hello"


async def test_the_responses_api_answers(workshop: Workshop) -> None:
    """At once, and in the background."""
    said = await workshop.python("responses_client.py")
    assert said == "You said: hello\nYou said: later\n"


@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0, '"content":"You said: hello"'),
        (1, '{"agent_id":"parrot","node":"node1"'),
        (2, '{"agent_id":"parrot","node":"node1","response":"You said: hello"'),
        (3, '{"matrix_user_id":"@ann:example.org","state":"online","matrix":"off"}'),
    ],
)
async def test_the_curl_lines_work(workshop: Workshop, number: int, wanted: str) -> None:
    """Word for word, but for the ports."""
    found = re.findall(r"\$ (curl (?:.*\\\n)*.*)\n\{", README)
    assert len(found) == 4
    router = workshop.mesh.http_url.removesuffix("/v1")
    line = found[number].replace("http://127.0.0.1:9102", router)
    line = line.replace("http://127.0.0.1:9205", workshop.mesh.registry_url)
    process = await asyncio.create_subprocess_shell(line, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert wanted in output.decode()


def test_the_greeting_is_as_shown(workshop: Workshop) -> None:
    """Every address that `mesh up` prints stands on the page, in the same order."""
    shown = README.partition("$ mesh up --node node1\n")[2].partition("```")[0]
    said = [line for line in workshop.mesh.up.lines if line.startswith("  ")]
    text = "\n".join(said).replace(str(workshop.folder / "data"), "~/.local/state/mesh")
    assert _without_ports(text) == _without_ports(shown.strip("\n").partition("\n")[2])


def _without_ports(text: str) -> str:
    return re.sub(r":\d+", "", text)


async def test_the_guide_streams_and_asks_and_publishes(workshop: Workshop) -> None:
    """The longer agent does what its comments say."""
    output = await workshop.python("ask.py")
    assert re.fullmatch(
        r"You said: hello\nclient asks, \d+ s are left\. You said: a nested call", output
    )


async def test_the_archivist_takes_a_file_and_gives_it_back(workshop: Workshop) -> None:
    """The command of the page, word for word, and what it prints."""
    console = README.partition("$ mesh send archivist ")[2].partition("```")[0]
    line, said, told, _ = console.split("\n")
    log, copy = workshop.folder / "access.log", workshop.folder / "copy.log"
    log.write_text("a line here\nand another\n")
    arguments = line.replace("access.log", str(log)).replace("copy.log", str(copy)).split()
    environ = {"TEST_CWD": str(workshop.folder)}
    async with workshop.mesh.start("run", "archivist:agent", **environ) as archivist:
        await archivist.says("agent archivist runs")
        done = await workshop.mesh.run("send", "archivist", *arguments)
        silent = await workshop.mesh.run("send", "archivist", "count", "--file", str(log), "--json")
        without = await workshop.mesh.run("send", "archivist", "count", "-o", str(copy))
    assert (done.code, done.out) == (0, f"{said}\n")
    assert done.err == f"{told}\n".replace("copy.log", str(copy))
    assert copy.read_bytes() == log.read_bytes()
    file = json.loads(silent.out)["file"]
    assert (file["name"], file["size_bytes"], file["saved_to"]) == ("access.log", 24, None)
    assert (without.code, without.out) == (1, "Nothing came with it.\n")
    assert without.err == "mesh: agent 'archivist' has answered without a file\n"


async def test_the_faststream_example_is_an_agent(workshop: Workshop) -> None:
    """A plain FastStream application with `attach`, run as an application is run."""
    runner = workshop.folder / "run_fast.py"
    runner.write_text("import asyncio\nfrom fast import app\nasyncio.run(app.run())\n")
    environ = {**workshop.mesh.environ, "PYTHONPATH": f"{workshop.folder}{os.pathsep}{ROOT}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(runner), env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        for _ in range(50):
            done = await workshop.mesh.run("send", "fast", "hello", "--timeout", "5")
            if done.code == 0:
                break
            await asyncio.sleep(0.1)
        assert re.fullmatch(r"read \d+ bytes\n", done.out), done
    finally:
        process.terminate()
        await process.wait()


def test_every_example_is_tested() -> None:
    """A new example needs a test here."""
    assert set(BLOCKS) == {
        *("parrot.py", "guide.py", "ask.py", "by_subject.py", "openai_client.py", "fast.py"),
        *("responses_client.py", "archivist.py"),
    }


def test_every_setting_is_in_the_table() -> None:
    """No variable is secret, and none is invented."""
    table = README.partition("## Settings")[2].partition("\n## ")[0]
    assert set(re.findall(r"MESH_[A-Z_]+", table)) == set(KNOWN_VARIABLES)


def test_every_command_is_in_the_table() -> None:
    """The list of commands is the real one."""
    table = README.partition("## Commands")[2].partition("\n## ")[0]
    named = set(re.findall(r"`mesh ([a-z]+)", table))
    commands = {one.name for one in app.registered_commands}
    assert named == commands | {one.name for one in app.registered_groups}
