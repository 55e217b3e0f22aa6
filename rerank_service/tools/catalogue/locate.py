"""Finds the model and the checkpoint that a text names, on the command line or in Python.

    NAME[@REVISION]          a name, id or alias of the catalogue, in any case
    ORG/NAME[@REVISION]      a repository of the model hub; the revision is a commit, a branch or a tag
    /FOLDER ./FOLDER ~/...   a folder
    s3://PATH[@REVISION]     a folder of an object store, also gs:// and others
    package:NAME             weights in a Python package
    ID=SOURCE[@REVISION]     any of these sources under another id

Reading a text needs no network. `Located.pinned` asks the hub for a commit.
"""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import ValidationError

from rerank_service.config import CheckpointConfig, readable_problems
from rerank_service.errors import CheckpointError
from rerank_service.tools.catalogue.models import CATALOGUE, KnownModel, known_model

__all__ = ["MODELS_DIR", "Located", "locate", "similar_names"]

MODELS_DIR = "/models"
"""Default folder on a node with one folder for each known model, as in the files of `cluster/`."""

_FOLDER = ("/", ".", "~")
_PACKAGE = "package:"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FORMS = "ORG/NAME on the hub, a folder (./NAME), s3://BUCKET/FOLDER, or package:NAME"


class Located(NamedTuple):
    """A model and the source of its files."""

    known: KnownModel
    """The catalogue's entry; for any other model, an entry with only the id and the name of an application."""
    source: str
    """The source, as in `CheckpointConfig.source`."""
    revision: str | None
    """Commit, branch or tag on the hub, or content revision in an object store; null: not given, or not applicable."""

    @property
    def is_pinned(self) -> bool:
        """Whether `checkpoint` is valid: the source has a revision that never changes, or needs none."""
        if "://" in self.source:
            return self.revision is not None
        return self._is_local or bool(_COMMIT.fullmatch(self.revision or ""))

    @property
    def _is_local(self) -> bool:
        return self.source.startswith((*_FOLDER, _PACKAGE))

    @property
    def checkpoint(self) -> CheckpointConfig:
        """The source and revision as settings. Raises `CheckpointError` unless the source is pinned."""
        try:
            return CheckpointConfig(source=self.source, revision=self.revision)
        except ValidationError as error:
            raise CheckpointError(readable_problems(error, CheckpointConfig)) from None

    def absolute(self) -> Self:
        """The same model with the absolute path of its folder, which does not depend on the current folder or user."""
        if not self.source.startswith((".", "~")):
            return self
        return self._replace(source=os.path.abspath(Path(self.source).expanduser()))  # keeps symbolic links

    def pinned(self) -> Self:
        """The same model with the commit of its branch or tag, which needs the network unless a commit is given.

        The revision of a folder in an object store is known only after a pull: `pull(...).manifest.revision`. Raises
        `CheckpointError`.
        """
        if self.is_pinned or "://" in self.source:
            return self
        from rerank_service.checkpoints.hub import resolve_revision  # takes half a second to import

        return self._replace(revision=resolve_revision(self.source, self.revision))


def locate(text: str, models_dir: str | None = None) -> Located:
    """Reads a text in one of the forms above. Raises `CheckpointError` with one line that says what is possible.

    The files of a known model are taken from its folder in `models_dir`. If `models_dir` is null, they are taken from
    `/models` if that folder has them, and otherwise from the hub, at the catalogue's commit.
    """
    if not _name_of(text):
        raise CheckpointError(
            f"{text!r} names no model: `rerank-service models` lists names; a model can also be {_FORMS}"
        )
    if _is_source(text):
        source, revision = _split(text)
        return Located(_model_of(source), source, revision)
    name, has_source, source = text.partition("=")
    if has_source:
        return _under_id(name, source, models_dir)
    name, revision = _split(text)
    known = _served(known_model(name) or _published_as(name))
    if known is not None:
        return _located_known(known, revision, models_dir)
    if _HUB_ID.fullmatch(name) and (revision is not None or not _has_checkpoint(name)):
        return Located(_unlisted(name), name, revision)
    raise CheckpointError(_not_found(text))


def _under_id(name: str, text: str, models_dir: str | None) -> Located:
    """The model at a source, under another id. The catalogue's model of that id, or else the catalogue's model that is
    the source, gives the settings."""
    source, revision = _split(text)
    given, unlisted = _served(known_model(name)), _unlisted(name)
    if _is_source(source) or _HUB_ID.fullmatch(source):
        return Located(given or unlisted, source, revision)
    known = _served(known_model(source))
    if known is None:
        raise CheckpointError(f"{name}={text}: {source!r} is not a source; a source is a known model, {_FORMS}")
    names = {"name": name, "id": name, "aliases": (), "application": unlisted.application}
    found = _located_known(known, revision, models_dir)
    return found._replace(known=given or known.model_copy(update=names))


def similar_names(text: str, limit: int = 3) -> list[str]:
    """Names of servable models in the catalogue that look like `text`, the most similar first."""
    names = {model.name.casefold(): model.name for model in CATALOGUE if model.refusal is None}
    wanted = text.casefold().rpartition("/")[2]
    words = set(re.split(r"[-_. ]+", wanted))
    found = get_close_matches(wanted, names, n=limit)
    found += [name for name in names if name not in found and words <= set(re.split(r"[-_.]", name))]
    found += [name for name in names if name not in found and len(wanted) > 2 and wanted in name]
    return [names[name] for name in found[:limit]]


def _is_source(text: str) -> bool:
    """Whether the text, up to its first `=`, can only be the source of a checkpoint."""
    return text.startswith((*_FOLDER, _PACKAGE)) or "://" in text.partition("=")[0]


def _split(text: str) -> tuple[str, str | None]:
    """Source and revision; a folder may contain `@` and has no revision."""
    source, _, revision = (text, "", "") if text.startswith((*_FOLDER, _PACKAGE)) else text.partition("@")
    return source, revision or None


def _name_of(text: str) -> str:
    """The text before a source or revision, without blanks."""
    return re.split("[=@]", text, maxsplit=1)[0].strip()


def _model_of(source: str) -> KnownModel:
    """The model at a source: the catalogue's model for a known package, otherwise a model named like its folder."""
    if source.startswith(_PACKAGE):
        known = next((model for model in CATALOGUE if model.source == source), None)
        return known or _unlisted(source.removeprefix(_PACKAGE))
    if "://" in source:
        return _unlisted(source.rstrip("/").rpartition("/")[2])
    return _unlisted(Path(source).expanduser().resolve().name)


def _unlisted(name: str) -> KnownModel:
    slug = re.sub(r"[^a-z0-9]+", "-", name.rpartition("/")[2].lower()).strip("-")
    return KnownModel(name=name, id=name, application=slug or "model", source="")


def _published_as(hub_id: str) -> KnownModel | None:
    return next((model for model in CATALOGUE if model.hub_id and model.hub_id.casefold() == hub_id.casefold()), None)


def _served(known: KnownModel | None) -> KnownModel | None:
    if known is not None and known.refusal is not None:
        raise CheckpointError(f"{known.name} cannot be served: {known.refusal}")
    return known


def _located_known(known: KnownModel, revision: str | None, models_dir: str | None) -> Located:
    if known.package and revision is None:
        return Located(known, known.source, None)
    folder = f"{(models_dir or MODELS_DIR).rstrip('/')}/{known.source}"
    if revision is None and (models_dir is not None or _has_checkpoint(folder)):
        return Located(known, folder, None)
    if known.hub_id is None:
        raise CheckpointError(
            f"{known.name} has no public location: give yours, {known.name}=SOURCE[@REVISION]; a source is {_FORMS}"
        )
    return Located(known, known.hub_id, revision or known.revision)


def _has_checkpoint(folder: str) -> bool:
    return (Path(folder).expanduser() / "config.json").is_file()


def _not_found(text: str) -> str:
    if _has_checkpoint(text):
        hub = f", or {text}@main for the hub" if "/" in text else ""
        return f"{text!r} is a folder here: write ./{text} for the folder{hub}"
    similar = " or ".join(similar_names(text.partition("@")[0]))
    hint = f"did you mean {similar}? " if similar else ""
    return f"{text!r} is not a known model: {hint}`rerank-service models` lists them; a model can also be {_FORMS}"
