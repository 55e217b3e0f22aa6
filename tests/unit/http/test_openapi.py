"""The published OpenAPI document: its examples work, and its texts fit every model."""

from pathlib import Path

from rerank_service.config import parse_serve_config
from rerank_service.http.dialects import NIM, routes_of
from tests.local_service import LocalReplica, api_over, client_of

FILE = Path(__file__).parents[3] / "serve_config.yaml"
CONFIG = parse_serve_config(FILE.read_text(), str(FILE))


async def test_every_example_of_the_default_service_is_answered() -> None:
    (model,) = CONFIG.models
    spoken = {**dict.fromkeys(NIM.paths, (NIM,)), **routes_of(CONFIG.dialects)}
    api = api_over(CONFIG, {model.id: LocalReplica(model)})
    paths = api.openapi()["paths"]
    assert spoken.keys() == {path for path in paths if "requestBody" in paths[path].get("post", {})}

    async with client_of(api) as client:
        for path, dialects in spoken.items():
            operation = paths[path]["post"]
            examples = operation["requestBody"]["content"]["application/json"]["examples"]
            assert {name.partition(",")[0] for name in examples} == {dialect.name for dialect in dialects}
            url = path.format_map(
                {parameter["name"]: parameter["example"] for parameter in operation.get("parameters", ())}
            )
            for name, example in examples.items():
                answer = await client.post(url, json=example["value"])
                assert answer.status_code == 200, (url, name, answer.text)
                (dialect,) = [one for one in dialects if one.name == name.partition(",")[0]]
                dialect.response.model_validate_json(answer.content)  # the fields select the right dialect


def test_no_text_says_that_every_model_is_a_cross_encoder() -> None:
    assert "cross-encoder" not in str(api_over(CONFIG, {}).openapi()).lower()
