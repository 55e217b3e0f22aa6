"""A test is skipped if its program is not installed, but fails if CI requires the program."""

import pytest

from tests.programs import needs_program


@pytest.mark.parametrize(
    ("name", "required", "is_skipped"),
    [("sh", "", False), ("no-such-program", "", True), ("no-such-program", "sh,no-such-program", False)],
)
def test_only_an_optional_program_is_skipped(
    name: str, required: str, is_skipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RERANK_REQUIRE", required)
    mark = needs_program(name, "a-package").mark

    assert mark.args == (is_skipped,)
    assert mark.kwargs["reason"] == f"{name} is not installed (Debian: a-package)"
