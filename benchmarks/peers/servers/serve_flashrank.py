"""flashrank's Ranker, ONNX Runtime, behind a small FastAPI server.

flashrank opens only models it has a name for; `--model` is a folder that wears such a name. It answers
probabilities and sorts its passages in place.
"""

from flashrank import Ranker, RerankRequest
from plain import read_arguments, serve


def main() -> None:
    """Probabilities in the order of the passages; ONNX Runtime takes its threads from the CPUs allowed."""
    arguments = read_arguments()
    ranker = Ranker(model_name=arguments.model.name, cache_dir=str(arguments.model.parent), max_length=512)

    def score(query: str, passages: list[str]) -> list[float]:
        rows = [{"id": index, "text": passage} for index, passage in enumerate(passages)]
        ranked = ranker.rerank(RerankRequest(query=query, passages=rows))
        return [row["score"] for row in sorted(ranked, key=lambda row: row["id"])]

    serve(score, arguments.port)


if __name__ == "__main__":
    main()
