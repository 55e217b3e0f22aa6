"""Runs all checks on a set of documents."""

from cluster.validate.checks import CHECKS
from cluster.validate.documents import Document, Documents, name_of
from cluster.validate.finding import Check, Finding, Setting
from cluster.validate.schemas import problems

__all__ = ["findings"]


_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""Errors of a check that meets a field without its usual form, which a schema does not always refuse."""


def findings(documents: Documents, setting: Setting) -> dict[str, list[Finding]]:
    """What each check finds, without the checks that find nothing. A document that its schema refuses ends the rest."""
    unnamed = [each for each in documents.all if not _is_named(each)]
    if unnamed:
        return {"schemas": [Finding("a document", "it has no apiVersion, kind or metadata.name") for _ in unnamed]}
    invalid = [Finding(name_of(each), problem) for each in documents.all for problem in problems(each)]
    if invalid:
        return {"schemas": invalid}
    found = {name: _found(check, documents, setting) for name, check in CHECKS.items()}
    return {name: each for name, each in found.items() if each}


def _is_named(document: Document) -> bool:
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return all(isinstance(each, str) and each for each in (document.get("apiVersion"), document.get("kind"), name))


def _found(check: Check, documents: Documents, setting: Setting) -> list[Finding]:
    try:
        # One finding per place and message: several documents may lead to the same pod.
        return list(dict.fromkeys(check(documents, setting)))
    except _MALFORMED as error:
        return [Finding("the documents", f"a field is malformed: {type(error).__name__}: {error}")]
