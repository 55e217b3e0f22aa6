"""Serves sentence-transformers' CrossEncoder with a small FastAPI server, in torch, ONNX Runtime or OpenVINO."""

import torch
from plain import read_arguments, serve
from sentence_transformers import CrossEncoder


def main() -> None:
    """Serves raw logits; the activation is the identity."""
    arguments = read_arguments()
    torch.set_num_threads(arguments.threads)
    encoder = CrossEncoder(
        str(arguments.model),
        device="cpu",
        activation_fn=torch.nn.Identity(),
        backend=arguments.backend,
        model_kwargs={"file_name": "model.onnx"} if arguments.backend == "onnx" else None,
    )

    def score(query: str, passages: list[str]) -> list[float]:
        pairs = [(query, passage) for passage in passages]
        logits: list[float] = encoder.predict(pairs, show_progress_bar=False).tolist()
        return logits

    serve(score, arguments.port)


if __name__ == "__main__":
    main()
