"""Serves flashrank's Ranker, which uses ONNX Runtime, with a small FastAPI server.

flashrank loads only models with known names, so the folder `--model` must have one of these names. flashrank returns
probabilities and sorts its passages in place.
"""

from flashrank import Ranker, RerankRequest
from plain import read_arguments, serve


def main() -> None:
    """Serves probabilities in the order of the passages. ONNX Runtime uses one thread per allowed CPU."""
    arguments = read_arguments()
    ranker = Ranker(model_name=arguments.model.name, cache_dir=str(arguments.model.parent), max_length=512)

    def score(query: str, passages: list[str]) -> list[float]:
        rows = [{"id": index, "text": passage} for index, passage in enumerate(passages)]
        ranked = ranker.rerank(RerankRequest(query=query, passages=rows))
        return [row["score"] for row in sorted(ranked, key=lambda row: row["id"])]

    serve(score, arguments.port)


if __name__ == "__main__":
    main()
