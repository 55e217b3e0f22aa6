"""The manifests of this repository have no findings, and each fault that is put into them is found."""

import pytest

from cluster import chart
from cluster.validate.documents import Documents
from cluster.validate.findings import findings
from cluster.validate.sets import kustomize, manifest_sets
from tests.unit.cluster.faults import FAULTS, Fault, with_fault

SETS = {each.name: each for each in manifest_sets()}
KEPT = {name: each for name, each in SETS.items() if each.kustomization is not None}
NEEDS_OF_A_FAULT = (StopIteration, KeyError, IndexError)
"""Errors of a fault that a set cannot have, for instance in Redis, where the set has none."""

pytestmark = pytest.mark.skipif(kustomize() is None, reason="needs kubectl or kustomize")


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_no_findings(name: str) -> None:
    each = SETS[name]
    if each.kustomization is None and not chart.is_available():
        pytest.skip("helm-python-sdk is not installed (extra dev)")
    assert findings(each.documents(), each.setting) == {}


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_fault_is_found_in_every_set_that_can_have_it(fault: Fault, check: str) -> None:
    tried = set()
    for name, each in KEPT.items():
        if not each.documents().of_kind("RayService"):
            continue
        try:
            changed = with_fault(each.documents().all, fault)
        except NEEDS_OF_A_FAULT:
            continue
        tried.add(name)
        assert check in findings(Documents(changed), each.setting), name
    assert "base" in tried
