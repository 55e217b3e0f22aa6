"""Settles, with all replicas of a deployment, in which precision they compute: the first chooses, the others follow.

The choice is kept in Ray's store of the cluster (GCS), so it outlives replicas, Serve's controller and, if the store is
in Redis, the head. A choice that a new replica cannot compute is replaced only if no living replica computes with it.
"""

import hashlib
import json
import logging
import socket
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import ray
from ray.experimental import internal_kv
from ray.util import list_named_actors

from rerank_service import __version__
from rerank_service.config import ModelConfig
from rerank_service.engine import Agree
from rerank_service.engine.protocol import choose_here
from rerank_service.errors import CheckpointError
from rerank_service.messages import Numerics

__all__ = ["agree_in_deployment", "agree_in_job"]

logger = logging.getLogger(__name__)

_NAMESPACE = b"rerank-service"


class _Choice(NamedTuple):
    """A choice in the store. A replacement has the next number."""

    number: int
    numerics: Numerics
    node: str
    """The node on which the choice was made."""
    chosen_at: str
    """Time in UTC, ISO 8601."""
    chosen_by: str
    """Name of the actor that made the choice."""


class _Group(NamedTuple):
    """The processes that agree, and this process among them."""

    subject: str
    """The model, and what the processes have in common, for messages."""
    scope: str
    """Prefix of the group's keys in the store."""
    member: str
    """Name of this process's actor."""
    living: Callable[[], Collection[str]] | None
    """Returns the names of all living actors. Null: a choice is never replaced."""


def agree_in_deployment(model: ModelConfig) -> Agree:
    """The agreement of the replicas of this process's deployment about a model; outside Serve, each process chooses for
    itself.

    A deployment whose engine has other settings, or another version of the service, agrees anew. While a rolling update
    replaces replicas, routing keeps each request on replicas with the same numerics.
    """
    from ray import serve  # not at the top, because batch workers need no Serve
    from ray.serve.exceptions import RayServeException

    try:
        deployment = serve.get_replica_context().replica_id.deployment_id
    except RayServeException:
        return choose_here
    if not ray.is_initialized():
        return choose_here
    settings = "\n".join([model.engine.model_dump_json(), model.checkpoint.model_dump_json(), __version__])
    digest = hashlib.sha256(settings.encode()).hexdigest()[:16]
    group = _Group(
        subject=f"model {model.id}, deployment {deployment.name} of application {deployment.app_name}",
        scope=f"{deployment.app_name}/{deployment.name}/{model.id}/{digest}",
        member=ray.get_runtime_context().get_actor_name() or "",
        living=_living_actors,
    )
    return partial(_agree, group)


def agree_in_job(model: ModelConfig) -> Agree:
    """The agreement of the workers of this process's Ray job about a model; without Ray, each process chooses."""
    if not ray.is_initialized():
        return choose_here
    job = ray.get_runtime_context().get_job_id()
    return partial(_agree, _Group(f"model {model.id}, job {job}", f"jobs/{job}/{model.id}", "", None))


def _agree(group: _Group, possible: Sequence[str], choose: Callable[[], Numerics]) -> Numerics:
    """See `Agree`."""
    while True:
        choice = _newest(group)
        if choice is None or (choice.numerics.name not in possible and not _is_held(group, choice)):
            _propose(group, 1 if choice is None else choice.number + 1, choose())
            continue  # another process may have been faster
        if choice.numerics.name in possible:
            _join(group, choice)
            return choice.numerics
        raise CheckpointError(
            f"{group.subject}: this process can compute in {' or '.join(possible)}, but all of them compute in "
            f"{choice.numerics.name}, as chosen on {choice.node} at {choice.chosen_at} ({choice.numerics.reason}). "
            "Their logits would differ: set engine.dtype to a type that every node supports, such as float32, or use "
            "replica.resources to keep the model on nodes of one kind"
        )


def _newest(group: _Group) -> _Choice | None:
    keys = internal_kv._internal_kv_list(f"{group.scope}/", namespace=_NAMESPACE)
    numbers = [key.removeprefix(f"{group.scope}/".encode()) for key in keys]
    newest = max((int(number) for number in numbers if number.isdigit()), default=None)
    if newest is None:
        return None
    value = internal_kv._internal_kv_get(_key(group, newest), namespace=_NAMESPACE)
    if value is None:  # replaced since it was listed
        return _newest(group)
    name, reason, *rest = json.loads(value)
    return _Choice(newest, Numerics(name, reason), *rest)


def _propose(group: _Group, number: int, numerics: Numerics) -> None:
    """Stores a choice, unless another process was faster."""
    value = [*numerics, socket.gethostname(), datetime.now(UTC).isoformat(timespec="seconds"), group.member]
    is_late = internal_kv._internal_kv_put(
        _key(group, number), json.dumps(value), overwrite=False, namespace=_NAMESPACE
    )
    if not is_late:
        logger.info("%s: computes in %s (%s)", group.subject, *numerics)
        if number > 1:
            previous = _key(group, number - 1)
            internal_kv._internal_kv_del(previous, del_by_prefix=True, namespace=_NAMESPACE)


def _join(group: _Group, choice: _Choice) -> None:
    """Records that this process computes as chosen, and removes the records of dead processes."""
    if group.living is None:
        return
    living = group.living()
    for member in _members(group, choice):
        if member not in living:
            internal_kv._internal_kv_del(_key(group, choice.number, member), namespace=_NAMESPACE)
    internal_kv._internal_kv_put(_key(group, choice.number, group.member), b"1", namespace=_NAMESPACE)


def _is_held(group: _Group, choice: _Choice) -> bool:
    """Whether a living process computes as chosen."""
    if group.living is None:
        return True
    return not {choice.chosen_by, *_members(group, choice)}.isdisjoint(group.living())


def _members(group: _Group, choice: _Choice) -> list[str]:
    prefix = f"{_key(group, choice.number)}/".encode()
    keys = internal_kv._internal_kv_list(prefix, namespace=_NAMESPACE)
    return [key.removeprefix(prefix).decode() for key in keys]


def _key(group: _Group, number: int, member: str | None = None) -> str:
    return f"{group.scope}/{number:06d}" + ("" if member is None else f"/{member}")


def _living_actors() -> set[str]:
    return {actor["name"] for actor in list_named_actors(all_namespaces=True)}
