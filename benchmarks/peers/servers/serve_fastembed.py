"""Serves fastembed's TextCrossEncoder, which uses ONNX Runtime, with a small FastAPI server."""

from fastembed.common.model_description import ModelSource
from fastembed.rerank.cross_encoder import TextCrossEncoder
from plain import read_arguments, serve


def main() -> None:
    """Serves the raw logits that fastembed returns."""
    arguments = read_arguments()
    TextCrossEncoder.add_custom_model(
        model="local/classifier", sources=ModelSource(hf="local/classifier"), model_file="model.onnx"
    )
    encoder = TextCrossEncoder(
        "local/classifier", threads=arguments.threads, specific_model_path=str(arguments.model), cuda=False
    )

    def score(query: str, passages: list[str]) -> list[float]:
        return list(encoder.rerank(query, passages))

    serve(score, arguments.port)


if __name__ == "__main__":
    main()
