"""JavaScript clients, unchanged: the Vercel AI SDK, Cohere's and Voyage's. `javascript/calls.mjs` calls them."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "javascript"
VERSIONS = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))["dependencies"]
AI_SDK = pytest.mark.client(
    f"ai {VERSIONS['ai']} with @ai-sdk/cohere {VERSIONS['@ai-sdk/cohere']} (JavaScript)", "Cohere v2"
)
COHERE_V1 = pytest.mark.client(f"cohere-ai {VERSIONS['cohere-ai']} (JavaScript), CohereClient", "Cohere v1")
COHERE_V2 = pytest.mark.client(f"cohere-ai {VERSIONS['cohere-ai']} (JavaScript), CohereClientV2", "Cohere v2")
VOYAGE = pytest.mark.client(f"voyageai {VERSIONS['voyageai']} (JavaScript)", "Voyage")

BEST_FIRST = [1, 2, 0]
TOLERANCE = 1e-3
UNKNOWN = "Unknown model 'no-such-model'; this service has:"

Call = Callable[..., Mapping[str, Any]]


@pytest.fixture
def call(url: str, query: str, texts: list[str], model: str) -> Call:
    """Calls a client, with these values unless the test has others, and returns its results or its error."""

    def call(client: str, options: Mapping[str, Any] | None = None, **others: Any) -> Mapping[str, Any]:
        values = {"url": url, "query": query, "documents": texts, "model": model, "options": options or {}, **others}
        script = json.dumps({"client": client, **values})
        node = Path(sys.prefix) / "bin" / "node"
        run = subprocess.run(
            [node, "--input-type=module", "-", script],
            input=(FOLDER / "calls.mjs").read_text(encoding="utf-8"),
            cwd=sys.prefix,  # which has the clients in node_modules
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        answer: Mapping[str, Any] = json.loads(run.stdout)
        return answer

    return call


@pytest.fixture
def probabilities(logits: Sequence[float]) -> list[float]:
    return [1 / (1 + math.exp(-logit)) for logit in logits]


def check(answer: Mapping[str, Any], expected: Sequence[float], documents: Sequence[Any] | None, count: int) -> None:
    """Checks the best `count` results: their order, scores and documents."""
    assert "error" not in answer, answer
    results = answer["results"]
    assert [one["index"] for one in results] == BEST_FIRST[:count]
    assert [one["score"] for one in results] == pytest.approx(
        [expected[index] for index in BEST_FIRST[:count]], abs=TOLERANCE
    )
    if documents is None:
        assert all("document" not in one for one in results)
    else:
        assert [one["document"] for one in results] == [documents[index] for index in BEST_FIRST[:count]]


def check_error(answer: Mapping[str, Any], name: str, status: int, message: str) -> None:
    error = answer["error"]
    assert (error["name"], error["statusCode"]) == (name, status)
    assert message in error["message"]


@AI_SDK
def test_the_ai_sdk(call: Call, texts: list[str], probabilities: list[float]) -> None:
    check(call("ai"), probabilities, texts, 3)
    check(call("ai", {"topN": 2}), probabilities, texts, 2)


@AI_SDK
def test_the_ai_sdk_ranks_objects_as_json(call: Call, texts: list[str]) -> None:
    documents = [{"title": f"Passage {index}", "text": text} for index, text in enumerate(texts)]

    results = call("ai", documents=documents)["results"]

    assert [one["document"] for one in results] == [documents[index] for index in BEST_FIRST]
    assert [one["score"] for one in results] == sorted((one["score"] for one in results), reverse=True)


@AI_SDK
def test_the_ai_sdk_shows_our_errors(call: Call) -> None:
    check_error(call("ai", model="no-such-model"), "AI_APICallError", 404, UNKNOWN)
    check_error(call("ai", query=" "), "AI_APICallError", 400, "query is blank; send a text")


@COHERE_V1
def test_cohere_v1(call: Call, texts: list[str], probabilities: list[float]) -> None:
    documents = [{"text": text} for text in texts]

    check(call("cohereV1", {"topN": 2, "returnDocuments": True}), probabilities, documents, 2)
    check(call("cohereV1", {"maxChunksPerDoc": 2}), probabilities, None, 3)


@COHERE_V1
def test_cohere_v1_ranks_objects_by_fields(call: Call, texts: list[str], probabilities: list[float]) -> None:
    check(
        call("cohereV1", {"rankFields": ["title"]}, documents=[{"title": text} for text in texts]),
        probabilities,
        None,
        3,
    )


@COHERE_V1
def test_cohere_v1_shows_our_errors(call: Call) -> None:
    check_error(call("cohereV1", model="no-such-model"), "NotFoundError", 404, UNKNOWN)
    check_error(call("cohereV1", query=" "), "UnprocessableEntityError", 422, "query is blank; send a text")
    check_error(
        call("cohereV1", {"rankFields": ["title"]}, query=" "), "BadRequestError", 400, "query is blank; send a text"
    )


@COHERE_V2
def test_cohere_v2(call: Call, probabilities: list[float]) -> None:
    check(call("cohereV2"), probabilities, None, 3)
    check(call("cohereV2", {"topN": 2, "maxTokensPerDoc": 100}), probabilities, None, 2)


@COHERE_V2
def test_cohere_v2_shows_our_errors(call: Call) -> None:
    check_error(call("cohereV2", model="no-such-model"), "NotFoundError", 404, UNKNOWN)
    check_error(call("cohereV2", query=" "), "BadRequestError", 400, "query is blank; send a text")
    check_error(call("cohereV2", {"priority": 1000}), "BadRequestError", 400, "priority")


@VOYAGE
def test_voyage(call: Call, texts: list[str], probabilities: list[float]) -> None:
    check(call("voyage", {"topK": 2, "returnDocuments": True}), probabilities, texts, 2)


@VOYAGE
def test_voyage_reads_data_from_a_body_that_could_also_be_jinas(call: Call, probabilities: list[float]) -> None:
    check(call("voyage"), probabilities, None, 3)


@VOYAGE
def test_voyage_shows_our_errors(call: Call, texts: list[str]) -> None:
    check_error(call("voyage", model="no-such-model"), "VoyageAIError", 404, UNKNOWN)
    too_long = call("voyage", {"truncation": False}, documents=[*texts, "word " * 1000])
    check_error(too_long, "VoyageAIError", 400, "query with documents[3]")
