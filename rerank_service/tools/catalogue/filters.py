"""Filters of the catalogue by language, memory and licence."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rerank_service.tools.catalogue.fit import gigabytes
from rerank_service.tools.catalogue.models import KnownModel

__all__ = ["Filters", "Sized", "language_code", "size_in_bytes"]

Sized = tuple[KnownModel, int | None]
"""A model with the memory that it needs in bytes; null: unknown."""

_UNITS = {"mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_Test = Callable[[KnownModel, int | None], bool]
_SHOWN_DIGITS = -8
"""The list shows memory in tenths of a GB. A size copied from the list passes its model."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([mgt]i?b)", re.IGNORECASE)


def size_in_bytes(text: str) -> int:
    """Reads a size with its unit, such as 2GB or 1.5 GiB. Raises `ValueError`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write a number with MB, GB or GiB, for example 2GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def language_code(text: str) -> str:
    """Reads a language's ISO 639-1 code; a region, as in pt-BR, is ignored. Raises `ValueError`."""
    code = re.split("[-_]", text.strip().lower())[0]
    if not re.fullmatch("[a-z]{2}", code):
        raise ValueError(f"{text!r} is not a language code; write two letters, for example de for German (ISO 639-1)")
    return code


class Filters(NamedTuple):
    """What a model must have; null: anything."""

    language: str | None = None
    """ISO 639-1 code of a language that the publisher lists. A model whose publisher claims many languages without a
    list also passes."""
    max_memory_bytes: int | None = None
    """A model of unknown size does not pass."""
    licence: str | None = None
    """Text in the licence's name, in any case."""
    is_commercial: bool = False
    """Whether the licence must allow commercial use."""

    def passes(self, model: KnownModel, needed_bytes: int | None) -> bool:
        """Whether the model has everything."""
        return all(test(model, needed_bytes) for _, _, test in self._tests())

    @property
    def text(self) -> str:
        """The filters in words, for a message."""
        *most, last = [text for _, text, _ in self._tests()] or ["any property"]
        return f"{', '.join(most)} and {last}" if most else last

    def relaxed(self, models: Sequence[Sized]) -> list[tuple[str, list[Sized]]]:
        """The name of each option without which some models pass, with these models, the smallest first. Models that no
        engine runs are left out."""
        tests = self._tests()
        found = []
        for option, _, dropped in tests:
            kept = [test for _, _, test in tests if test is not dropped]
            passing = [one for one in models if one[0].refusal is None and all(test(*one) for test in kept)]
            if passing:
                found.append((option, sorted(passing, key=lambda one: (one[1] is None, one[1] or 0))))
        return found

    def _tests(self) -> list[tuple[str, str, _Test]]:
        """The option, the words and the test of each filter that is set."""
        language, most, licence = self.language, self.max_memory_bytes, self.licence
        tests: list[tuple[str, str, _Test]] = []
        if language is not None:
            tests.append(("--language", f"the language {language}", lambda model, _: model.may_know(language)))
        if most is not None:
            tests.append(
                (
                    "--max-memory",
                    f"at most {gigabytes(most)} of memory",
                    lambda _, needed_bytes: needed_bytes is not None and round(needed_bytes, _SHOWN_DIGITS) <= most,
                )
            )
        if licence is not None:
            wanted = licence.casefold()
            tests.append(
                ("--licence", f"{licence!r} in its licence", lambda model, _: wanted in model.licence.casefold())
            )
        if self.is_commercial:
            tests.append(("--commercial", "a licence for commercial use", lambda model, _: model.is_commercial))
        return tests
