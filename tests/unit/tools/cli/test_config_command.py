"""The service and Ray Serve accept the output of `rerank-service config` and `rerank-service environment`."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from rerank_service.config import RerankConfig, load_config, parse_serve_config
from rerank_service.tools.catalogue import CATALOGUE, known_model
from rerank_service.tools.catalogue.fit import Gpu, Machine
from rerank_service.tools.cli.main import app
from rerank_service.tools.deployment.ray_environment import HAPROXY_ENVIRONMENT, RAY_ENVIRONMENT
from tests.fake_hub import fake_hub

LLAMA, MISTRAL, MINILM = "llama-3.2-nv-rerankqa-1b-v2", "nv-rerankqa-mistral-4b-v3", "all-MiniLM-L6-v2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ON_A_CLUSTER = ["--replicas", "1:8", "--ingresses", "2:8", "--ingress-cpus", "1", "--pin", "--host", "10.0.0.1"]
FROM_FOLDERS = ["--models-dir", "/models"]
runner = CliRunner()


def written(*arguments: str) -> str:
    result = runner.invoke(app, ["config", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def settings_of(*arguments: str) -> RerankConfig:
    text = written(*arguments)
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    return parse_serve_config(text, "output")


@pytest.mark.parametrize(
    "arguments",
    [
        [LLAMA],
        [MINILM],
        [LLAMA, MISTRAL, MINILM],
        [*(model.name for model in CATALOGUE if model.refusal is None), *FROM_FOLDERS, "--device", "cuda"],
        # The commits of the others are not in the catalogue, so the hub would be asked.
        [*(model.name for model in CATALOGUE if model.refusal is None and (model.revision or not model.hub_id))],
        [LLAMA, "--device", "cuda"],
        [LLAMA, "--device", "cpu"],
        [LLAMA, MISTRAL, *ON_A_CLUSTER],
        [LLAMA, "--gpus", "0", "--cpus", "2"],
        [MINILM, "--gpus", "0.5"],
        ["my org/model: #1=~/a 'folder' # here", "--gpus", "1", "--pin"],
        [f"cross/encoder=cross/encoder@{COMMIT}", "--key-hashes", "/etc/keys", "--requests-per-minute", "60"],
    ],
)
def test_the_configuration_can_be_served_and_names_its_command(arguments: list[str]) -> None:
    text = written(*arguments)
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    parse_serve_config(text, "output")

    program, command, *repeated = shlex.split(text.splitlines()[0].removeprefix("# Written by: "))

    assert (program, command) == ("rerank-service", "config")
    assert written(*repeated) == text


def test_a_model_with_gpus_has_its_own_application() -> None:
    settings = settings_of(LLAMA, MINILM, "--replicas", "1:2", "--replicas", f"{LLAMA}=2:8", "--pin")

    llama, minilm = settings.models
    assert (llama.application, minilm.application) == ("llama-1b", None)
    assert (llama.autoscaling.min_replicas, llama.autoscaling.max_replicas) == (2, 8)
    assert (minilm.autoscaling.min_replicas, minilm.autoscaling.max_replicas) == (1, 2)
    assert llama.replica.resources == {"rerank:llama-1b": 0.001}
    assert (llama.replica.num_gpus, minilm.replica.num_gpus, minilm.replica.resources) == (1, 0, {})
    assert settings.default_model_id == llama.id


def test_the_catalogues_hardware_settings_are_omitted_on_other_hardware() -> None:
    (on_gpu,) = settings_of(LLAMA, "--device", "cuda").models
    (on_cpu,) = settings_of(LLAMA, "--gpus", "0").models

    assert (on_gpu.engine.device, on_gpu.engine.dtype, on_gpu.batching.max_batch_tokens) == ("cuda", "bfloat16", 32_768)
    assert (on_cpu.engine.device, on_cpu.engine.dtype, on_cpu.batching.max_batch_tokens) == ("auto", "auto", None)
    assert on_cpu.window_tokens == 8192


def test_a_folder_of_this_machine_has_its_absolute_path_and_one_of_a_cluster_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")

    here = settings_of("./mine", "~/yours").models
    (elsewhere,) = settings_of("./mine", "--pin").models

    assert [model.checkpoint.source for model in here] == [str(tmp_path / "mine"), "/home/somebody/yours"]
    assert elsewhere.checkpoint.source == "./mine"


def test_sources_and_revisions() -> None:
    models = settings_of(LLAMA, f"{MISTRAL}=some/hub-id@{COMMIT}", "x/y=./with@sign", "--models-dir", "/mnt/m/").models

    assert [model.checkpoint.source for model in models] == [
        "/mnt/m/llama-nemotron-rerank-1b-v2",
        "some/hub-id",
        "./with@sign",
    ]
    assert [model.checkpoint.revision for model in models] == [None, COMMIT, None]
    assert models[1].window_tokens == 512


def test_limits_and_keys() -> None:
    options = ["--passages-per-minute", "5000", "--rate-limit-storage", "redis://redis:6379/1", "--key-hashes", "/k"]
    settings = settings_of(MINILM, *options)

    assert settings.rate_limits.passages_per_minute == 5000
    assert settings.rate_limits.storage == "redis://redis:6379/1"
    assert settings.auth.key_hashes_file == Path("/k")


def test_output_to_a_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"

    assert written(MINILM, "--output", str(path)) == ""

    assert path.read_text() == written(MINILM)
    assert load_config(path).models[0].id == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unheard-of"], "'unheard-of' is not a known model"),
        (["bge-m3"], "did you mean bge-reranker-v2-m3?"),
        (["a=s3://bucket/folder"], "needs revision: the 64 digits"),
        (["jina-reranker-v2-base-multilingual"], "cannot be served: its files need their own Python code"),
        ([LLAMA, f"nvidia/{LLAMA}"], "list each model only once"),
        ([LLAMA, "--replicas", "8:"], "'8:' is not a number of replicas: N or MIN:MAX"),
        ([LLAMA, "--replicas", "8:1"], "--replicas 8:1: the minimum 8 is greater than the maximum 1"),
        ([LLAMA, "--gpus", "one"], "'one' is not a number"),
        ([LLAMA, "--gpus", f"{MISTRAL}=1"], "is not among the models given"),
        ([LLAMA, "--gpus", "1", "--device", "cpu"], "--device cpu and --gpus exclude each other"),
        (
            [MINILM, "--output", "/no/folder/serve.yaml"],
            "cannot write /no/folder/serve.yaml: No such file or directory",
        ),
        ([LLAMA, "--passages-per-minute", "3"], "the largest request could never pass"),
    ],
)
def test_invalid_configurations_are_refused_with_the_reason(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["config", *arguments])

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert "Errno" not in result.output


@pytest.mark.parametrize("gpus", [(), (Gpu("L4", 24_000_000_000),)], ids=["no GPU", "GPU"])
def test_by_default_the_models_run_on_this_machine(monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...]) -> None:
    machine = Machine(16_000_000_000, gpus, has_bfloat16=False, num_cpus=8)
    monkeypatch.setattr("rerank_service.tools.catalogue.fit.this_machine", lambda: machine)

    llama, minilm = settings_of(LLAMA, MINILM).models

    assert llama.replica.num_gpus == len(gpus)
    assert (llama.engine.device, llama.engine.dtype) == (("cuda", "bfloat16") if gpus else ("auto", "auto"))
    assert (llama.checkpoint.source, llama.checkpoint.revision) == (CATALOGUE[0].hub_id, CATALOGUE[0].revision)
    assert (minilm.replica.num_gpus, minilm.engine.dtype) == (0, "fastest")


@pytest.mark.parametrize("option", [["--pin"], ["--ingresses", "2:2"], ["--ingress-cpus", "1"]])
def test_options_for_a_cluster_give_each_model_its_usual_hardware_and_folder(
    monkeypatch: pytest.MonkeyPatch, option: list[str]
) -> None:
    monkeypatch.setattr("rerank_service.tools.catalogue.fit.this_machine", pytest.fail)

    (model,) = settings_of(LLAMA, *option).models

    assert (model.replica.num_gpus, model.engine.device) == (1, "cuda")
    assert model.checkpoint.source == "/models/llama-nemotron-rerank-1b-v2"


def test_gpus_per_replica_need_no_gpu_here() -> None:
    (model,) = settings_of(LLAMA, "--gpus", "0.5").models
    assert (model.replica.num_gpus, model.engine.device) == (0.5, "cuda")
    assert model.checkpoint.source == CATALOGUE[0].hub_id


def test_a_model_without_a_public_location_comes_from_its_folder() -> None:
    (model,) = settings_of(MISTRAL).models
    assert model.checkpoint.source == f"/models/{MISTRAL}"


def test_a_cpu_is_written_if_it_was_chosen() -> None:
    (model,) = settings_of(LLAMA, "--device", "cpu").models
    assert (model.replica.num_gpus, model.engine.device) == (0, "cpu")


def test_a_fixed_number_of_replicas() -> None:
    (model,) = settings_of(MINILM, "--replicas", "3").models
    assert (model.autoscaling.min_replicas, model.autoscaling.max_replicas) == (3, 3)


def test_a_branch_of_the_hub_is_written_as_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        commit = hub.put("org/name", {"config.json": b"{}"})
        (model,) = settings_of("mine=org/name").models
    assert (model.id, model.checkpoint.source, model.checkpoint.revision) == ("mine", "org/name", commit)


def test_names_in_the_catalogue_are_unambiguous() -> None:
    names = [name for model in CATALOGUE for name in {known.casefold() for known in model.names}]
    assert len(set(names)) == len(names)
    assert len({model.application for model in CATALOGUE}) == len(CATALOGUE)
    assert known_model("NVIDIA/Llama-Nemotron-Rerank-1B-v2") is CATALOGUE[0]
    assert known_model("unheard of") is None


def test_json_has_the_same_content() -> None:
    arguments = ["config", "all-MiniLM-L6-v2", "--replicas", "1:3"]
    as_yaml, as_json = (runner.invoke(app, [*arguments, *more]).stdout for more in ([], ["--json"]))
    assert json.loads(as_json) == yaml.safe_load(as_yaml)

    variables = json.loads(runner.invoke(app, ["environment", "--haproxy", "--json"]).stdout)
    assert variables == RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT


def test_a_shell_reads_the_environment() -> None:
    script = runner.invoke(app, ["environment", "--haproxy"]).stdout + "exec env -0"
    shell = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    variables = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)

    assert variables.items() >= (RAY_ENVIRONMENT | HAPROXY_ENVIRONMENT).items()
    assert "HAPROXY" not in runner.invoke(app, ["environment"]).stdout
