"""The reference lists every setting of the configuration with its type and default."""

import re

import pytest
from pydantic import BaseModel

from rerank_service import config
from rerank_service.tools.config_reference import config_reference

SECTIONS = [item for item in vars(config).values() if isinstance(item, type) and issubclass(item, BaseModel)]


@pytest.fixture(scope="module")
def by_section() -> dict[str, str]:
    """Text of each section of the reference, by the path in the section's heading."""
    parts = re.split(r"^## (.*)$", config_reference(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_is_listed_once_in_its_section(section: type[BaseModel], by_section: dict[str, str]) -> None:
    names = set(section.model_fields)
    listed = [set(re.findall(r"^- \*\*`(\w+)`\*\*", text, flags=re.MULTILINE)) for text in by_section.values()]
    assert listed.count(names) == 1


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("Top level", "- **`models`** (list of: section, required)"),
        ("`models[]`", "- **`window_tokens`** (integer at least 16 or null, default `null`)"),
        ("`models[].checkpoint`", "- **`source`** (string, required)"),
        ("`models[].engine`", "- **`head`** (section or null, default `null`)"),
        ("`models[].engine`", "- **`yes_no`** (section or null, default `null`)"),
        ("`models[].engine`", '- **`special_tokens`** (one of `text`, `parse`, default `"text"`)'),
        ("`models[].engine.head`", "- **`bias`** (number, default `-11.0`)"),
        (
            "`models[].replica`",
            "- **`resources`** (mapping from string to number greater than 0, default `{}`)",
        ),
        (
            "`models[].autoscaling`",
            "- **`target_utilisation`** (number greater than 0 and at most 1, default `0.8`)",
        ),
        ("`pools[].replica`", "The same settings as in `models[].replica`."),
        ("`service.ingress`", "- **`num_cpus`** (number at least 0, default `0`)"),
    ],
)
def test_a_setting_has_its_path_type_and_default(section: str, line: str, by_section: dict[str, str]) -> None:
    assert line in [one.rstrip() for one in by_section[section].splitlines()]


def test_the_description_is_the_docstring_of_the_setting(by_section: dict[str, str]) -> None:
    description = config.LimitsConfig.model_fields["max_body_bytes"].description
    assert description
    assert description in by_section["`limits`"]


def test_headings_have_the_requested_level() -> None:
    assert set(re.findall(r"^#+ ", config_reference(heading_level=3), flags=re.MULTILINE)) == {"### "}
