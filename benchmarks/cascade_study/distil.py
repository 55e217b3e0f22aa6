"""Trains cut encoders to give the token states of the whole encoder, from unlabelled text.

The loss is the mean of `1 - cosine` over tokens, because late interaction compares nothing but directions. Embeddings
are frozen. All students learn from the same passes of the teacher.
"""

import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel

__all__ = ["SOURCES", "distil", "read_texts", "text_batches"]

SOURCES = ("squad", "qamr", "debian", "medquad")
"""Sources of the training texts. Natural Questions is left out, because nq-heldout has its passages."""

_BATCH_TEXTS, _MAX_TOKENS = 16, 256
_JOINED = 0.5
"""Share of the passages that are joined with another one: training passages have 70 words, ranked ones up to 250."""
_LEARNING_RATE, _WARM_UP = 5e-4, 0.06
_SEED = 11


def read_texts(groups: Path, sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Distinct queries and distinct passages of `sources`, in the file's order."""
    queries, passages = dict[str, None](), dict[str, None]()
    with gzip.open(groups, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["src"] in sources:
                queries[row["q"]] = None
                passages |= dict.fromkeys((row["pos"], *row["negs"]))
    return list(queries), list(passages)


def text_batches(queries: Sequence[str], passages: Sequence[str], seed: int) -> Iterator[list[str]]:
    """Endless batches with one query in four texts. Texts of a batch are drawn at random."""
    generator = random.Random(seed)  # noqa: S311 - not a secret
    while True:
        batch = generator.sample(queries, _BATCH_TEXTS // 4)
        for passage in generator.sample(passages, _BATCH_TEXTS - len(batch)):
            is_joined = generator.random() < _JOINED
            batch.append(f"{passage} {generator.choice(passages)}" if is_joined else passage)
        yield batch


def distil(
    teacher: Path, students: Sequence[Path], groups: Path, num_steps: int, progress: Callable[[str], None]
) -> dict[str, float]:
    """Trains the checkpoints `students` in place. Returns the loss of each, by the folder's name, over the last tenth
    of the steps."""
    torch.manual_seed(_SEED)
    tokenizer = _tokenizer(teacher)
    whole = AutoModel.from_pretrained(teacher, add_pooling_layer=False).eval().requires_grad_(False)
    models = {folder: _trainable(folder) for folder in students}
    optimizers = [torch.optim.AdamW(_weights(model), lr=_LEARNING_RATE, weight_decay=0.01) for model in models.values()]
    rates = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: _rate(step, num_steps)) for one in optimizers]
    losses: list[list[float]] = []
    for step, texts in zip(range(num_steps), text_batches(*read_texts(groups, SOURCES), _SEED), strict=False):
        inputs = _inputs(tokenizer, texts)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            target = whole(**inputs).last_hidden_state.float()
        losses.append(_step(models.values(), optimizers, rates, inputs, target))
        if step % 20 == 0:
            progress(f"step {step}: " + ", ".join(f"{loss:.4f}" for loss in losses[-1]))
    for folder, model in models.items():
        unused = load_file(folder / "model.safetensors")  # the pooler, which a complete checkpoint has
        save_file(unused | _saved(model), folder / "model.safetensors", {"format": "pt"})
    last = losses[-max(1, num_steps // 10) :]
    return {folder.name: sum(row[place] for row in last) / len(last) for place, folder in enumerate(students)}


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def _trainable(folder: Path) -> Any:
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.embeddings.requires_grad_(False)
    return model


def _weights(model: Any) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def _rate(step: int, num_steps: int) -> float:
    """Share of the learning rate: linear warm-up, then linear decay to zero."""
    warm_up = max(1, round(_WARM_UP * num_steps))
    return min((step + 1) / warm_up, (num_steps - step) / max(1, num_steps - warm_up))


def _inputs(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    encodings = tokenizer.encode_batch(list(texts))
    return {
        "input_ids": torch.tensor([one.ids for one in encodings]),
        "attention_mask": torch.tensor([one.attention_mask for one in encodings]),
    }


def _step(
    models: Any, optimizers: Sequence[Any], rates: Sequence[Any], inputs: dict[str, torch.Tensor], target: torch.Tensor
) -> list[float]:
    is_token = inputs["attention_mask"].bool()
    losses = []
    for model, optimizer, rate in zip(models, optimizers, rates, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            states = model(**inputs).last_hidden_state
        loss = (1 - F.cosine_similarity(states.float()[is_token], target[is_token], dim=-1)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(_weights(model), 1.0)
        optimizer.step()
        rate.step()
        losses.append(loss.item())
    return losses


def _saved(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
