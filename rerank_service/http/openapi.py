"""The published OpenAPI document: NVIDIA's schema of the API, with this service's limits filled in.

NVIDIA's schema requires `model`, but real clients also send null or omit the field. A body is therefore either
`RankingRequest`, which is NVIDIA's schema, or `RankingRequestDefaultModel`, which leaves the model to the service.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from rerank_service.config import LimitsConfig, RerankConfig
from rerank_service.http.dialects import NIM, Dialect, routes_of, rules_of
from rerank_service.http.dialects.nim import ErrorEnvelope, RankingRequest, RankingResponse
from rerank_service.messages import Truncate
from rerank_service.routing.model_router import slug_of

__all__ = ["RANKING_OPERATION", "add_openapi", "dialect_operation"]

_REF = "#/components/schemas/{model}"


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=schema)}}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": _json("ErrorEnvelope")}


_RANKING_HEADERS: dict[str, Any] = {
    name: {"description": description, "required": True, "schema": {"type": "integer", "minimum": 0}}
    for name, description in {
        "x-rerank-truncated-passages": "Number of passages that were truncated or whose query was truncated. "
        "Repeated passages count each time.",
        "x-rerank-unscored-passages": "Number of passages of which no token was scored, because the query fills "
        "the model's window. Their scores are meaningless.",
    }.items()
} | {
    "x-model": {"description": "Id of the model that ranked the passages.", "schema": {"type": "string"}},
    "x-rerank-stages": {
        "description": "Number of passages that each stage of a cascade scored, such as `small=512, large=20`. A stage "
        "that was left out has 0 and the reason: `large=0;skipped=queue_full`. Absent for other models.",
        "schema": {"type": "string"},
    },
    "x-ignored-fields": {
        "description": "Names of up to ten fields of the body that the API does not have; absent if there are none.",
        "schema": {"type": "string"},
    },
}

RANKING_OPERATION: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": _REF.format(model="RankingRequest")},
                        {"$ref": _REF.format(model="RankingRequestDefaultModel")},
                    ]
                }
            }
        },
    },
    "responses": {
        "200": {
            "description": "Ranked passages with relevance scores.",
            "headers": _RANKING_HEADERS,
            "content": _json("RankingResponse"),
        },
        "400": _error("Invalid request."),
        "401": _error("Missing or invalid API key."),
        "404": _error("Unknown model."),
        "413": _error("The body exceeds the size limit, or the request has more tokens than a replica's queue holds."),
        "415": _error("The Content-Type is not JSON, or the body is compressed with an encoding other than gzip."),
        "429": _error("The caller's per-minute quota of requests or passages is exhausted; see Retry-After."),
        "500": _error("The model failed on this request."),
        "503": _error("The service is overloaded, or no replica of the model is available; see Retry-After."),
        "504": _error("No answer within the service's time limit, or the client's x-request-timeout-seconds."),
    },
}
"""OpenAPI operation of NVIDIA's routes. The routes parse the body themselves, so FastAPI cannot infer the body's
schema."""


def dialect_operation(dialects: Sequence[Dialect]) -> dict[str, Any]:
    """OpenAPI operation of a path that these dialects share, with the bodies, answers and errors of all of them."""
    responses = {
        "200": {
            "description": "Results in the form of the body's dialect.",
            "headers": _RANKING_HEADERS,
            "content": _any_of(dialects, "response"),
        }
    }
    for status, description in _DIALECT_ERRORS.items():
        responses[status] = {"description": description, "content": _any_of(dialects, "error")}
    return {"requestBody": {"required": True, "content": _any_of(dialects, "request")}, "responses": responses}


_DIALECT_ERRORS = {
    **{
        status: response["description"]
        for status, response in RANKING_OPERATION["responses"].items()
        if status != "200"
    },
    "422": "Invalid request, in dialects that use 422 instead of 400.",
    "424": "The model failed on this request or was too slow, in dialects that use 424 instead of 500 and 504.",
}


def _any_of(dialects: Sequence[Dialect], part: str) -> dict[str, Any]:
    names = [getattr(dialect, part).__name__ for dialect in dialects]
    schemas = [{"$ref": _REF.format(model=name)} for name in names]
    return {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}


def add_openapi(api: FastAPI, config: RerankConfig, *, keys_are_required: bool) -> None:
    """Makes `api.openapi` return NVIDIA's and the dialects' schemas, with this service's limits, instead of the schemas
    that FastAPI infers."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            api.openapi_schema = _describe(api, config, keys_are_required)
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _describe(api: FastAPI, config: RerankConfig, keys_are_required: bool) -> dict[str, Any]:
    document = get_openapi(
        title=api.title,
        version=api.version,
        description=api.description,
        routes=api.routes,
        servers=api.servers or None,  # FastAPI stores the route prefix here
        tags=[
            {"name": "Reranking", "description": "NVIDIA's reranking API"},
            {"name": "Dialects", "description": "Reranking through other vendors' APIs"},
        ],
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (RankingResponse, ErrorEnvelope):
        _add(schemas, model.model_json_schema(ref_template=_REF), model.__name__)
    request = RankingRequest.model_json_schema(ref_template=_REF)
    truncate = rules_of(config, NIM.paths[0], is_own=True).truncate or Truncate.END
    _add(schemas, _with_limits(request, config.limits, truncate), "RankingRequestDefaultModel")
    schemas["RankingRequest"] = _contract(schemas["RankingRequestDefaultModel"])
    routes = routes_of(config.dialects, config.paths)
    for dialect in {id(one): one for spoken in routes.values() for one in spoken}.values():
        for part in (dialect.response, dialect.error):
            _add(schemas, part.model_json_schema(ref_template=_REF, mode="serialization"), part.__name__)
        schema = dialect.request.model_json_schema(ref_template=_REF)
        _add(schemas, _with_max_items(schema, config.max_documents), dialect.request.__name__)
    _add_examples(document["paths"], config)
    scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "nvapi-..."}
    if config.auth.key_headers:
        scheme["description"] = f"The key may also be in one of these headers: {', '.join(config.auth.key_headers)}."
    components["securitySchemes"] = {"BearerAuth": scheme}
    document["security"] = [{"BearerAuth": []}] if keys_are_required else [{}, {"BearerAuth": []}]
    return document


def _add_examples(paths: dict[str, Any], config: RerankConfig) -> None:
    """Adds bodies, and a model's slug, that this service answers with 200."""
    model = config.default_model_id
    for path, spoken in {**dict.fromkeys(NIM.paths, (NIM,)), **routes_of(config.dialects, config.paths)}.items():
        operation = paths[path]["post"]
        bodies = {dialect.name: dialect.example for dialect in spoken}
        if NIM in spoken and config.limits.max_explained_passages:
            bodies["nim, explained"] = {**NIM.example, "explain": {"top_n": 1}}
        examples = {name: {"value": {"model": model, **body}} for name, body in bodies.items()}
        operation["requestBody"]["content"]["application/json"]["examples"] = examples
        for parameter in operation.get("parameters", ()):
            parameter["example"] = slug_of(model)


def _add(schemas: dict[str, Any], schema: dict[str, Any], name: str) -> None:
    """Adds a pydantic schema and its definitions to the components."""
    schemas.update(schema.pop("$defs", {}))
    schemas[name] = schema | {"title": name}


def _with_limits(schema: dict[str, Any], limits: LimitsConfig, truncate: Truncate) -> dict[str, Any]:
    schema = deepcopy(schema)
    schema["properties"]["passages"]["maxItems"] = limits.max_passages
    _limit_windows(schema, limits.max_windows_per_passage)
    _limit_explanations(schema, limits.max_explained_passages)
    if limits.unknown_fields == "ignore":
        for part in (schema, *schema["$defs"].values()):
            part.pop("additionalProperties", None)
    schema["properties"]["truncate"] = {
        "anyOf": [{"type": "string", "enum": ["NONE", "END"]}, {"type": "null"}],
        "default": truncate.value,
        "description": schema["properties"]["truncate"]["description"],
    }
    return schema


def _limit_windows(schema: dict[str, Any], limit: int) -> None:
    if limit == 1:  # turned off
        del schema["properties"]["passage_windows"], schema["$defs"]["WindowOptions"]
        return
    whole, _ = schema["$defs"]["WindowOptions"]["properties"]["max_per_passage"]["anyOf"]
    whole["maximum"] = limit


def _limit_explanations(schema: dict[str, Any], limit: int) -> None:
    if limit == 0:  # turned off
        del schema["properties"]["explain"], schema["$defs"]["ExplainOptions"]
        return
    schema["$defs"]["ExplainOptions"]["properties"]["top_n"]["maximum"] = limit


def _with_max_items(schema: dict[str, Any], limit: int) -> dict[str, Any]:
    for name in ("documents", "texts"):
        part = schema["properties"].get(name, {})
        if part.get("type") == "array":
            part["maxItems"] = limit
    # Whether unknown fields are refused depends on the dialect and the configuration.
    schema.pop("additionalProperties", None)
    return schema


def _contract(schema: dict[str, Any]) -> dict[str, Any]:
    """NVIDIA's form of the schema: `model` is a required string, and `truncate` is not nullable."""
    schema = deepcopy(schema)
    properties = schema["properties"]
    for name in ("model", "truncate"):
        not_null = properties[name].pop("anyOf")[0]
        properties[name] = not_null | properties[name]
    properties["model"].pop("default")
    return schema | {"title": "RankingRequest", "required": ["model", "query", "passages"]}
