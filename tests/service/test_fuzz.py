"""Invalid and unusual bodies, generated from the published OpenAPI document and written by hand."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import Interaction

from tests.contract import (
    SEED_RANKING_REQUEST,
    SEED_RANKING_RESPONSE,
    assert_valid_error,
    assert_valid_request,
    assert_valid_response,
)
from tests.service.running import (
    CLIENT_TIMEOUT_S,
    LLAMA,
    MINILM,
    MISTRAL,
    Reference,
    Service,
    assert_error,
    assert_ranked,
    ranking_body,
)

ONE_OF_SEVERAL = {name: {"enabled": False} for name in ("positive_data_acceptance", "negative_data_rejection")}
"""On a path with several dialects, the fields of a body decide which published schema applies."""
FUZZING = {
    "generation": {"max-examples": 20, "deterministic": True},
    "continue-on-failure": True,
    "operations": [{"include-tag": "Dialects", "checks": ONE_OF_SEVERAL}],
}
BODY = ranking_body(LLAMA, "which?", ["this", "that"])
JSON = {"content-type": "application/json"}
MESSAGE_LIMIT = 4000
"""Limit on the length of an error: it names at most ten problems and never repeats a hostile body."""

# Characters for which str.isspace() is true. Zero-width characters are not among these characters and count as text.
BLANKS = ["", " ", "\t\r\n", "\x0b\x0c", "\x1c\x1d\x1e\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u2028", "\u3000"]

NO_JSON = {
    "empty": b"",
    "spaces": b" \n ",
    "word": b"ranking",
    "form": b"query=x&passages=y",
    "unfinished": json.dumps(BODY).encode()[:-1],
    "trailing": json.dumps(BODY).encode() + b"{}",
    "comment": b"// a comment\n" + json.dumps(BODY).encode(),
    "single quotes": json.dumps(BODY).replace('"', "'").encode(),
    "trailing comma": json.dumps(BODY).encode()[:-1] + b",}",
    "only a byte order mark": b"\xef\xbb\xbf",
    "two byte order marks": b"\xef\xbb\xbf" * 2 + json.dumps(BODY).encode(),
    "utf-16": json.dumps(BODY).encode("utf-16"),
    "utf-32": json.dumps(BODY).encode("utf-32"),
    "latin-1": json.dumps(BODY | {"model": "café"}, ensure_ascii=False).encode("latin-1"),
    "overlong utf-8": b'{"query":{"text":"\xc0\xaf"},"passages":[{"text":"x"}]}',
    "utf-8 surrogate": b'{"query":{"text":"\xed\xa0\x80"},"passages":[{"text":"x"}]}',
    "lone surrogate in query": b'{"query":{"text":"\\ud800"},"passages":[{"text":"x"}]}',
    "lone surrogate in passage": b'{"query":{"text":"x"},"passages":[{"text":"\\udfff x"}]}',
    "lone surrogate in key": b'{"\\ud800":1,"query":{"text":"x"},"passages":[{"text":"x"}]}',
    "control character": b'{"query":{"text":"\x00"},"passages":[{"text":"x"}]}',
    "bad escape": b'{"query":{"text":"\\x41"},"passages":[{"text":"x"}]}',
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep unfinished arrays": b"[" * 100_000,
    "deep objects": b'{"query":' * 100_000 + b"1" + b"}" * 100_000,
    "deep passage": b'{"query":{"text":"x"},"passages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 100,
    "null bytes": b"\x00" * 1000,
}

WRONG: list[Any] = [True, 0, -1, 1.5, 10**400, float("nan"), float("inf"), [], [[]], ["x"], {}, {"text": {}}, {"a": 1}]
WRONG_FIELDS = {
    "model": WRONG,
    "query": [*WRONG, None, "text", {"text": None}, {"text": 1}, {"text": ["x"]}],
    "passages": [
        *(*WRONG, None, "text", [None], [1], ["text"], [[]], [{}], [{"text": None}], [{"text": 1}]),
        *([{"text": "x"}, {}], [{"text": "x"}] * 513),
        *([{"text": 1}] * 513, [[{"text": "x"}]], [{"text": ["x"]}], [{"k" * 100_000: 1}]),
    ],
    "truncate": [*WRONG, "", "end", "START", "NONE ", "\x00"],
}
UNKNOWN_FIELDS: dict[str, Any] = {"top_n": 1, "": 1, "k" * 100_000: 1, "a\r\nb": [1], "\u00e9": {"a": 1}}


def test_every_operation_follows_its_published_description(service: Service) -> None:
    """Runs all checks of schemathesis, and checks each answer of the ranking routes against the contract."""
    document = httpx.get(f"{service.url}/openapi.json", timeout=CLIENT_TIMEOUT_S).json()
    for schema in document["components"]["schemas"].values():
        schema.get("properties", {}).pop("min_probability", None)  # refused, because no model here is calibrated
    config = SchemathesisConfig.from_dict(FUZZING | {"base-url": service.url})
    description = schemathesis.openapi.from_dict(document, config=config)
    scenarios, errors, failures = [], [], []
    for event in from_schema(description).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            errors.append(event)
        elif isinstance(event, events.ScenarioFinished):
            scenarios.append(event.recorder)
            checks = [check for case in event.recorder.checks.values() for check in case]
            failures += [(check.name, check.failure_info) for check in checks if check.failure_info]
    assert not errors
    assert not failures
    labels = {scenario.label for scenario in scenarios} - {"Stateful tests"}  # sequences of several operations
    assert len(labels) == description.statistic.operations.total
    interactions = [interaction for scenario in scenarios for interaction in scenario.interactions.values()]
    assert {_checked_status(interaction) for interaction in interactions} >= {200, 400, 404, 405}


@pytest.mark.parametrize("model_id", [LLAMA, MISTRAL, MINILM])
def test_any_text_is_ranked_as_the_engine_ranks_it(
    client: httpx.Client, references: dict[str, Reference], model_id: str
) -> None:
    @settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(query=st.text(min_size=1).filter(str.strip), passages=st.lists(st.text(), min_size=1, max_size=5))
    def check(query: str, passages: list[str]) -> None:
        body = ranking_body(model_id, query, passages)
        assert_valid_request(body)
        answer = assert_ranked(client.post("/v1/ranking", json=body), references[model_id].logits(query, passages))
        assert answer["usage"]["total_tokens"] == references[model_id].num_tokens(query, passages)

    check()


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_a_body_that_is_not_json_is_400(client: httpx.Client, body: bytes) -> None:
    error = assert_error(client.post("/v1/ranking", content=body, headers=JSON), 400)
    assert error["message"].startswith("The body is not valid JSON: ")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("field", WRONG_FIELDS, ids=lambda field: field[:10])
def test_a_wrong_value_is_400_and_its_field_is_named(client: httpx.Client, field: str) -> None:
    for value in WRONG_FIELDS[field]:
        body = json.dumps(BODY | {field: value})
        error = assert_error(client.post("/v1/ranking", content=body, headers=JSON), 400)
        assert error["detail"][0]["loc"][:2] == ["body", field[:80]]
        assert len(error["message"]) < MESSAGE_LIMIT


@pytest.mark.parametrize("field", UNKNOWN_FIELDS, ids=lambda field: ascii(field[:10]))
def test_an_unknown_field_is_ignored(client: httpx.Client, references: dict[str, Reference], field: str) -> None:
    response = client.post("/v1/ranking", json=BODY | {field: UNKNOWN_FIELDS[field]})
    assert_ranked(response, references[LLAMA].logits("which?", ["this", "that"]))
    assert len(response.headers["x-ignored-fields"]) <= 40


@pytest.mark.parametrize("value", [*WRONG, None, "text"], ids=lambda value: str(value)[:10])
def test_a_body_of_another_form_is_400(client: httpx.Client, value: Any) -> None:
    error = assert_error(client.post("/v1/ranking", content=json.dumps(value), headers=JSON), 400)
    assert error["detail"][0]["loc"][0] == "body"


@pytest.mark.parametrize("text", BLANKS, ids=ascii)
def test_a_blank_query_is_400(client: httpx.Client, text: str) -> None:
    error = assert_error(client.post("/v1/ranking", json=BODY | {"query": {"text": text}}), 400)
    assert error["message"] == "query.text is blank; send a text"


@pytest.mark.parametrize(
    "body",
    [
        b"\xef\xbb\xbf" + json.dumps(BODY).encode(),
        b'{"query":{"text":"first"},"query":{"text":"which?"},"passages":[{"text":"this"},{"text":"that"}]}',
        json.dumps(BODY | {"truncate": None}, indent=4).replace("\n", "\r\n\t").encode(),
    ],
    ids=["byte order mark", "a repeated key, the last counts", "white space"],
)
def test_unusual_but_valid_json_is_ranked(client: httpx.Client, references: dict[str, Reference], body: bytes) -> None:
    response = client.post("/v1/ranking", content=body, headers=JSON)
    assert_ranked(response, references[LLAMA].logits("which?", ["this", "that"]))


def test_the_service_still_answers(client: httpx.Client) -> None:
    assert client.get("/v1/health/ready").status_code == 200
    assert client.post("/v1/ranking", json=BODY).status_code == 200


def test_the_published_schemas_match_the_contract(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for name, seed in (("RankingRequest", SEED_RANKING_REQUEST), ("RankingResponse", SEED_RANKING_RESPONSE)):
        assert list(_differences(seed, schemas[name], schemas, name)) == []


def test_the_published_operation_matches_the_contract(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/ranking"]["post"]
    assert (operation["operationId"], operation["tags"]) == ("rankPassages", ["Reranking"])
    assert "Reranking" in {tag["name"] for tag in document["tags"]}
    assert set(operation["responses"]) >= {"200", "400", "401", "429"}
    assert _reference(operation["responses"]["200"]) == "#/components/schemas/RankingResponse"
    assert operation["requestBody"]["required"] is True
    accepted = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert {"$ref": "#/components/schemas/RankingRequest"} in accepted
    bearer = document["components"]["securitySchemes"]["BearerAuth"]
    assert (bearer["type"], bearer["scheme"]) == ("http", "bearer")
    assert {"BearerAuth": []} in document["security"]


def _checked_status(interaction: Interaction) -> int:
    request, response = interaction.request, interaction.response
    assert response is not None
    path = urlsplit(request.uri).path
    if path.endswith(("/ranking", "/reranking")) and request.method != "HEAD":
        answer = json.loads(response.content)
        if response.status_code == 200:
            assert_valid_response(answer, len(json.loads(request.body or b"")["passages"]))
        else:
            assert_valid_error(answer)
    return response.status_code


def _differences(seed: dict[str, Any], published: dict[str, Any], schemas: dict[str, Any], at: str) -> Iterator[str]:
    """Places where `published` contradicts `seed`. `published` may have additional keywords."""
    published = schemas[published["$ref"].rsplit("/", 1)[-1]] if "$ref" in published else published
    for keyword in {"type", "default"} & seed.keys():
        if seed[keyword] != published.get(keyword):
            yield f"{at}: {keyword} is {published.get(keyword)}"
    for keyword in ("required", "enum"):
        if keyword in seed and set(seed[keyword]) != set(published.get(keyword, ())):
            yield f"{at}: {keyword} is {published.get(keyword)}"
    for name, part in seed.get("properties", {}).items():
        yield from _differences(part, published.get("properties", {}).get(name, {}), schemas, f"{at}.{name}")
    if "items" in seed:
        yield from _differences(seed["items"], published.get("items", {}), schemas, f"{at}[]")


def _reference(response: dict[str, Any]) -> str:
    reference: str = response["content"]["application/json"]["schema"]["$ref"]
    return reference
