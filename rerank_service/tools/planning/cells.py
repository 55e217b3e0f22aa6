"""Divides a fleet into cells: identical clusters behind one gateway, each with a Serve controller of its own."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rerank_service.tools.planning.fleet import Demand
from rerank_service.tools.planning.limits import Cadence, limits_of

__all__ = ["Cells", "cells_of", "fewest_cells", "fullest_cell"]

_MOST_BUSY = 0.97
"""Utilisation above which the backlog of a cell grows for as long as another cell is missing."""


@dataclass(frozen=True)
class Cells:
    """A fleet in several cells."""

    count: int
    replicas: int
    """Replicas of each cell."""
    controller_cpus: float
    """Busy CPUs of each cell's controller, which can use at most one core."""
    most_replicas: int
    """Largest cell that one controller can manage."""
    busy: float
    """Utilisation of the devices."""
    busy_after_loss: float
    """Utilisation of the others when one cell is lost; infinite if there is no other."""

    @property
    def are_enough(self) -> bool:
        """Whether every controller keeps up, and the load still fits when one cell is lost."""
        return self.replicas <= self.most_replicas and self.busy_after_loss <= _MOST_BUSY


def cells_of(demand: Demand, replicas: int, num_cells: int, cadence: Cadence | None = None) -> Cells:
    """A fleet of `replicas` for the whole `demand`, in cells of equal size that receive equal shares of the load."""
    each = math.ceil(replicas / num_cells)
    limits = limits_of(replace(demand, rps=demand.rps / num_cells), each, cadence)
    busy = demand.tokens_per_s / (num_cells * each * demand.speed.full_tokens_per_s)
    after = busy * num_cells / (num_cells - 1) if num_cells > 1 else math.inf
    return Cells(num_cells, each, limits.controller_cpus, limits.most_replicas, busy, after)


def fewest_cells(demand: Demand, replicas: int, cadence: Cadence | None = None) -> Cells:
    """The fewest cells that are enough. Where no number is, because the fleet has no spare room, the controllers
    decide."""
    has_room = demand.tokens_per_s < _MOST_BUSY * replicas * demand.speed.full_tokens_per_s
    all_sizes = (cells_of(demand, replicas, num_cells, cadence) for num_cells in range(1, replicas + 1))
    return next(
        cells for cells in all_sizes if cells.are_enough or (not has_room and cells.replicas <= cells.most_replicas)
    )


def fullest_cell(loads: Sequence[float], num_cells: int, seed: int = 0) -> float:
    """Load of the fullest cell as a multiple of the mean, if each tenant goes to the cell that its hash selects.

    `loads` has one value per tenant. Rendezvous hashing stands for any consistent hash.
    """
    totals = [0.0] * num_cells
    for tenant, load in enumerate(loads):
        digests = [hashlib.sha256(f"{seed}/{tenant}/{cell}".encode()).digest() for cell in range(num_cells)]
        totals[digests.index(max(digests))] += load
    return max(totals) * num_cells / sum(loads)
