"""Routes that describe the models, in NVIDIA's form and in the forms of the enabled dialects.

Clients of other vendors call these routes before they rank. The routes need a key if a ranking does, but call no model.
"""

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request

from rerank_service import __version__
from rerank_service.config import CascadeConfig, DialectName, ModelConfig, RerankConfig
from rerank_service.config.replica import default_batch_tokens
from rerank_service.errors import UnknownModel
from rerank_service.http.access import ApiKeys
from rerank_service.http.dialects import rules_of, tei
from rerank_service.messages import Truncate
from rerank_service.telemetry.ingress_metrics import IngressMetrics

__all__ = ["model_routes"]

_UNAUTHORISED: dict[int | str, dict[str, Any]] = {401: {"description": "Missing or invalid API key."}}
_TEI_INPUT_TOKENS = 512
"""Window that text-embeddings-inference's clients assume by default. Sent while the model has not answered yet."""


def model_routes(config: RerankConfig, keys: ApiKeys, metrics: IngressMetrics) -> APIRouter:
    """Builds the GET routes."""
    routes = APIRouter(tags=["Service"])
    entries = _entries(config, metrics)
    names = [name for model in config.listed for name in model.names]

    @routes.get("/v1/models", responses=_UNAUTHORISED)
    async def models(request: Request) -> dict[str, Any]:
        """Served models and their aliases. An alias has the model's id as `root`. `numerics` names the number types in
        which a model computes. If a model's files leave open what the model computes, `unverified` tells what the
        service assumes. Only a cascade has `stages`; it ranks a whole request, so clients must not split a request for
        it."""
        keys.authenticate(request.headers)
        return {"object": "list", "data": entries()}

    @routes.get("/v1/models/{model:path}", responses=_UNAUTHORISED | {404: {"description": "Unknown model."}})
    async def model(request: Request, model: str) -> dict[str, Any]:
        """One model, by its name or an alias. The name may contain slashes. The case of the name does not matter."""
        keys.authenticate(request.headers)
        wanted = model.strip("/").casefold()
        if not wanted:
            return {"object": "list", "data": entries()}
        for entry in entries():
            if entry["id"].casefold() == wanted:
                return entry
        raise UnknownModel(model, names, ("path", "model"))

    _add_dialect_routes(routes, config, keys, metrics, entries)
    return routes


def _add_dialect_routes(
    routes: APIRouter,
    config: RerankConfig,
    keys: ApiKeys,
    metrics: IngressMetrics,
    entries: Callable[[], list[dict[str, Any]]],
) -> None:
    if DialectName.INFINITY in config.dialects:

        @routes.get("/models", responses=_UNAUTHORISED)
        async def infinity_models(request: Request) -> dict[str, Any]:
            """Served models and their aliases, in Infinity's form."""
            keys.authenticate(request.headers)
            more = {"owned_by": "infinity", "backend": "", "capabilities": ["rerank"], "stats": {}}
            return {"object": "list", "data": [entry | more for entry in entries()]}

    if DialectName.TEI in config.dialects:

        @routes.get("/info", responses=_UNAUTHORISED)
        async def tei_info(request: Request) -> dict[str, Any]:
            """The default model and its limits, in the form of text-embeddings-inference."""
            keys.authenticate(request.headers)
            return _tei_info(config, metrics)

    if {DialectName.COHERE, DialectName.JINA} & set(config.dialects):

        @routes.get("/v1/cluster/auth", openapi_extra={"security": []})
        async def xinference_auth() -> dict[str, bool]:
            """Whether a key is required. Xinference's clients, which rank with `/v1/rerank`, send a key only then."""
            return {"auth": keys.are_required}


def _entries(config: RerankConfig, metrics: IngressMetrics) -> Callable[[], list[dict[str, Any]]]:
    """Returns a function that lists the models and cascades. The default model comes first: clients without a
    configured model use the first model in the list."""
    default, created = _default(config), int(time.time())
    default_first = sorted(config.listed, key=lambda model: model is not default)

    def entries() -> list[dict[str, Any]]:
        return [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "rerank-service",
                "root": model.id,
                "model_type": "rerank",  # Xinference's clients require it
                **facts,
            }
            for model in default_first
            for facts in (_facts(model, config, metrics),)
            for name in model.names
        ]

    return entries


def _facts(model: ModelConfig | CascadeConfig, config: RerankConfig, metrics: IngressMetrics) -> dict[str, Any]:
    """The fields of a list entry that differ between models."""
    window = _window_tokens(model, config, metrics)
    facts: dict[str, Any] = {} if window is None else {"max_model_len": window}  # as in vLLM
    if isinstance(model, CascadeConfig):
        return facts | {"stages": [stage.model_dump(exclude_none=True) for stage in model.stages]}
    numerics, reason = metrics.numerics.get(model.id), metrics.unverified.get(model.id)
    if numerics is not None:
        facts["numerics"] = numerics.name
    return facts if reason is None else facts | {"unverified": reason}


def _default(config: RerankConfig) -> ModelConfig | CascadeConfig:
    default = config.default_model_id.casefold()
    return next(model for model in config.listed if default in {name.casefold() for name in model.names})


def _window_tokens(model: ModelConfig | CascadeConfig, config: RerankConfig, metrics: IngressMetrics) -> int | None:
    """Maximum length of a pair in tokens; null if only the checkpoint defines it and no replica has answered yet. A
    cascade has the smallest window of its stages, because each stage truncates or refuses long pairs."""
    if isinstance(model, ModelConfig):
        return metrics.window_tokens.get(model.id, model.window_tokens)
    stages = {stage.model for stage in model.stages}
    windows = [_window_tokens(one, config, metrics) for one in config.models if one.id in stages]
    return min((window for window in windows if window is not None), default=None)


def _tei_info(config: RerankConfig, metrics: IngressMetrics) -> dict[str, Any]:
    default = _default(config)
    model = config.single_model(default)
    replica, rules = config.replica_of(model), rules_of(config, tei.RERANK.paths[0])
    batch_tokens = model.batching.max_batch_tokens or default_batch_tokens(on_gpu=replica.num_gpus > 0)
    return {
        "model_id": default.id,
        "model_sha": model.checkpoint.revision,
        "model_dtype": min(metrics.precisions(model.id), default=model.engine.dtype.value),
        "served_model_name": default.id,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": config.service.ingress.max_ongoing_requests,
        "max_input_length": _window_tokens(default, config, metrics) or _TEI_INPUT_TOKENS,
        "max_batch_tokens": batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": rules.max_passages,
        "auto_truncate": rules.truncate is not Truncate.NONE,
        "tokenization_workers": replica.tokeniser_threads,
        "version": __version__,
        "sha": None,
        "docker_label": None,
    }
