"""A reranker whose weights are being trained: the engine that serves it, with adapters or with a trainable head.

The engine tokenises, truncates, runs and pools as in service, so every kind of engine can be trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers.core_model_loading import revert_weight_conversion

from rerank_service.checkpoints.verification import Progress, no_progress
from rerank_service.config import EngineKind, ModelConfig
from rerank_service.engine import Truncate
from rerank_service.engine.build import load_trainable
from rerank_service.engine.device.precision import computes_bfloat16
from rerank_service.errors import CheckpointError
from rerank_service.tools.tune.adapters import Adapter, adapt_layers
from rerank_service.tools.tune.attention import use_differentiable_attention
from rerank_service.tools.tune.lists import TrainingLists
from rerank_service.tools.tune.loss import listwise_loss

__all__ = ["Method", "TrainableModel"]

Method = Literal["lora", "head"]


class TrainableModel:
    """A loaded model, its trainable parameters, and their values before training."""

    def __init__(
        self, settings: ModelConfig, method: Method, rank: int, seed: int, progress: Progress = no_progress
    ) -> None:
        """With `lora`, all linear layers of the transformer and the head are trained; with `head`, only the head.
        Raises `CheckpointError` if the model has nothing to train."""
        self.engine = load_trainable(settings, progress)
        use_differentiable_attention(self.engine.backbone)
        device = self.engine.device.type
        if device != "cpu" or computes_bfloat16():
            # Takes 0.6 of the CPU time in float32 (all-MiniLM-L6-v2, AVX512-BF16). Weights and head stay in float32.
            self.engine.backbone.forward = torch.autocast(device, torch.bfloat16)(self.engine.backbone.forward)
        self._shares_passages = self.engine.kind is EngineKind.LATE_INTERACTION
        # A list's loss does not depend on a constant added to all its logits, so such a bias would only drift.
        self._head = {name: weight for name, weight in self.engine.head_weights.items() if weight.numel() > 1}
        if method == "head" and not self._head:
            raise CheckpointError(
                f"{settings.id} is a {self.engine.kind.value}, which has no head that can be trained alone: use "
                "--method lora"
            )
        self._adapters: dict[str, Adapter] = {}
        if method == "lora":
            self._adapters = adapt_layers(self.engine.backbone, rank, 2.0 * rank, seed)
        self._start = {name: weight.detach().clone() for name, weight in self._head.items()}
        for weight in self._head.values():
            weight.requires_grad_(True)

    @property
    def list_size(self) -> int:
        """Suitable number of passages in a list. Late interaction encodes a passage once for all queries of a step, so
        every query has the passages of all lists."""
        return 4 if self._shares_passages else 8

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters, by name."""
        adapters = {
            f"{name}.{part}": weight
            for name, adapter in self._adapters.items()
            for part, weight in (("down", adapter.down), ("up", adapter.up))
        }
        return adapters | self._head

    def backward(self, lists: TrainingLists) -> float:
        """Mean loss of the lists; adds its gradients to those of the parameters."""
        with self.engine.caches_off():
            if self._shares_passages:
                loss = self._losses(lists.queries, lists.passages, lists.grades).mean()
                loss.backward()
                return loss.item()
            total = 0.0
            for query, own, grades in zip(lists.queries, lists.own, lists.grades, strict=True):
                passages = [lists.passages[index] for index in own]  # one list at a time, which takes less memory
                loss = self._losses([query], passages, grades[None, list(own)])[0] / len(lists.queries)
                loss.backward()
                total += loss.item()
            return total

    def _losses(self, queries: Any, passages: Any, grades: torch.Tensor) -> torch.Tensor:
        pairs = [pair for query in queries for pair in self.engine.tokenise(query, passages, Truncate.END)]
        logits = self.engine.forward(pairs).view(len(queries), len(passages))
        return listwise_loss(logits, grades.to(logits.device))

    @contextmanager
    def mixed(self, share: float) -> Iterator[None]:
        """A context in which the weights are `(1 - share) * start + share * learnt`, as in WiSE-FT (arXiv
        2109.01903)."""
        learnt = {name: weight.detach().clone() for name, weight in self._head.items()}
        try:
            self._mix(share, learnt)
            yield
        finally:
            self._mix(1.0, learnt)

    @torch.no_grad()
    def _mix(self, share: float, learnt: dict[str, torch.Tensor]) -> None:
        for adapter in self._adapters.values():
            adapter.share = share
        for name, weight in self._head.items():
            weight.copy_(torch.lerp(self._start[name], learnt[name], share))

    def changes(self) -> dict[str, torch.Tensor]:
        """Float32 differences between the present and the initial weights, by the ends of their tensors' names."""
        adapters = {name: adapter.delta() for name, adapter in self._adapters.items()}
        heads = {name: (weight.detach() - self._start[name]).float() for name, weight in self._head.items()}
        return self._as_stored(adapters) | heads

    @property
    def changed(self) -> dict[str, torch.Tensor]:
        """Tensors without values (`meta`), with the names and shapes of `changes`."""
        adapters = {name: adapter.linear.weight.to("meta") for name, adapter in self._adapters.items()}
        return self._as_stored(adapters) | {name: weight.to("meta") for name, weight in self._head.items()}

    def _as_stored(self, of_layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Changes of layers as changes of the checkpoint's tensors, one of which may hold several layers (GTE)."""
        named = {f"{name}.weight": change for name, change in of_layers.items()}
        stored: dict[str, torch.Tensor] = revert_weight_conversion(self.engine.backbone, named)
        return stored
