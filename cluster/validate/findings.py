"""Runs all checks on a set of documents."""

from cluster.validate.checks import CHECKS
from cluster.validate.documents import Documents, name_of
from cluster.validate.finding import Finding, Setting
from cluster.validate.schemas import problems

__all__ = ["findings"]


def findings(documents: Documents, setting: Setting) -> dict[str, list[Finding]]:
    """What each check finds, without the checks that find nothing. A document that its schema refuses ends the rest."""
    invalid = [Finding(name_of(each), problem) for each in documents.all for problem in problems(each)]
    if invalid:
        return {"schemas": invalid}
    # One finding per place and message: several documents may lead to the same pod.
    found = {name: list(dict.fromkeys(check(documents, setting))) for name, check in CHECKS.items()}
    return {name: each for name, each in found.items() if each}
