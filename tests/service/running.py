"""The running service, and the engines with which tests compare its answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from ray.serve.schema import ServeDeploySchema

from rerank_service.config import MODEL_IMPORT_PATH, ModelConfig, RerankConfig
from rerank_service.engine import Engine, Truncate
from tests.contract import assert_valid_error, assert_valid_response

__all__ = [
    "APART",
    "CLIENT_TIMEOUT_S",
    "KEY",
    "LLAMA",
    "LOGIT_TOLERANCE",
    "MINILM",
    "MISTRAL",
    "POOLED",
    "Reference",
    "Service",
    "assert_error",
    "assert_ranked",
    "long_text",
    "ranking_body",
]

LLAMA = "nvidia/llama-3.2-nv-rerankqa-1b-v2"
MISTRAL = "nvidia/nv-rerankqa-mistral-4b-v3"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
APART = "llama-apart"
"""Name of the application with the keyed model."""
POOLED = ("pooled/first", "pooled/second")
"""Two models that share a replica; the replica holds one model at a time."""
KEY = "nvapi-of-the-tests"
CLIENT_TIMEOUT_S = 250
"""Time limit that only ends a test that hangs."""
LOGIT_TOLERANCE = 1e-4
"""Largest difference between the logits of a pair in a batch and alone, in float32."""


@dataclass(frozen=True)
class Service:
    """The addresses of both applications, and a way to deploy them again."""

    port: int
    config: RerankConfig
    keyed_config: RerankConfig

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def keyed_url(self) -> str:
        return f"{self.url}/keyed"

    def deploy(
        self,
        knobs: dict[str, Any] | None = None,
        more_models: Sequence[ModelConfig] = (),
        more_applications: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Gives Serve the target state of all applications, like `serve run` and `serve deploy`.

        `knobs` is the `user_config` of the keyed model. `/keyed` also serves `more_models`, each from the application
        that the model names. `more_applications` have the form of a Serve configuration.
        """
        (model,) = self.keyed_config.models
        keyed = self.keyed_config.model_copy(update={"models": (model, *more_models)})
        apart = [_model_application(model, knobs), *(_model_application(more) for more in more_models)]
        applications = [_application("rerank", "/", self.config), _application("keyed", "/keyed", keyed), *apart]
        applications += more_applications
        serve_client().deploy_apps(ServeDeploySchema.model_validate({"applications": applications}))

    def pids(self, application: str, deployment: str) -> set[int]:
        """Ids of the running processes of a deployment; briefly empty after a new deployment."""
        deployed = serve_client().get_serve_details()["applications"].get(application, {"deployments": {}})
        details = deployed["deployments"].get(deployment, {})
        return {replica["pid"] for replica in details.get("replicas", []) if replica["state"] == "RUNNING"}


class Reference:
    """An engine in this process."""

    def __init__(self, engine: Engine[Any]) -> None:
        self._engine = engine
        self.window_tokens = engine.window_tokens

    def logits(self, query: str, passages: Sequence[str]) -> list[float]:
        """Logits of the pairs, each scored alone."""
        pairs = self._engine.tokenise(query, passages, Truncate.END)
        return [self._engine.score([pair])[0] for pair in pairs]

    def num_tokens(self, query: str, passages: Sequence[str]) -> int:
        return sum(pair.num_tokens for pair in self._engine.tokenise(query, passages, Truncate.END))


def serve_client() -> Any:
    """Serve's internal client: the public API has neither `deploy_apps` nor the process ids of replicas."""
    from ray.serve.context import _get_global_client

    return _get_global_client()


def ranking_body(model: str | None, query: str, passages: Sequence[str], **options: Any) -> dict[str, Any]:
    return {"model": model, "query": {"text": query}, "passages": [{"text": text} for text in passages], **options}


def long_text(num_words: int) -> str:
    """Text with several tokens per word."""
    return " ".join(f"word{number}" for number in range(num_words))


def assert_ranked(response: httpx.Response, logits: Sequence[float]) -> dict[str, Any]:
    """Checks that the answer is a correct ranking with these logits, given in the request's order. Returns the body."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert_valid_response(body, len(logits))
    served = {ranking["index"]: ranking["logit"] for ranking in body["rankings"]}
    wrong = {i: (served[i], logit) for i, logit in enumerate(logits) if abs(served[i] - logit) > LOGIT_TOLERANCE}
    assert not wrong
    return body


def assert_error(response: httpx.Response, status: int) -> dict[str, Any]:
    """Checks that the answer is an error envelope with this status. Returns the body."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert_valid_error(body)
    return body


def _application(name: str, route_prefix: str, config: RerankConfig) -> dict[str, Any]:
    return {
        "name": name,
        "route_prefix": route_prefix,
        "import_path": "rerank_service.app:build_app",
        "args": config.model_dump(mode="json"),
    }


def _model_application(model: ModelConfig, knobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "name": model.application,
        "route_prefix": None,
        "import_path": MODEL_IMPORT_PATH,
        "args": model.model_dump(mode="json", exclude={"application"}, exclude_unset=True),
        "deployments": [{"name": model.deployment_name, "user_config": knobs}] if knobs else [],
    }
