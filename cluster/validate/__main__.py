"""Checks rendered Kubernetes manifests.

python -m cluster.validate              the sets of this repository, as cluster/validate/sets.yaml lists them
python -m cluster.validate FILE...      your own, rendered by helm, kustomize or Argo CD ("-": standard input)

--feature-gate NAME, once per gate that is on in your KubeRay operator, such as RayClusterMTLS
"""

import argparse
import sys
from pathlib import Path

import yaml

from cluster.validate.documents import Document, Documents
from cluster.validate.finding import Setting
from cluster.validate.findings import findings
from cluster.validate.sets import image_environment, manifest_sets


def _read(names: list[str]) -> list[Document]:
    texts = [sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8") for name in names]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def _report(name: str, documents: Documents, setting: Setting) -> bool:
    found = findings(documents, setting)
    count = sum(len(each) for each in found.values())
    sys.stdout.write(f"{name}: {len(documents.all)} documents, {count or 'no'} finding{'s' * (count != 1)}\n")
    for check, each in found.items():
        sys.stdout.writelines(f"  {check}: {finding}\n" for finding in each)
    return not count


def main() -> None:
    """Exit code 0: no findings; 1: at least one."""
    parser = argparse.ArgumentParser(prog="python -m cluster.validate", description="Check rendered manifests.")
    parser.add_argument("files", nargs="*", help='rendered manifests ("-": standard input); default: the repository\'s')
    parser.add_argument("--feature-gate", action="append", default=[], help="a gate that is on in your operator")
    given = parser.parse_args()
    if given.files:
        setting = Setting(feature_gates=frozenset(given.feature_gate), image_environment=image_environment())
        sets = [("your manifests", Documents(_read(given.files)), setting)]
    else:
        sets = [(each.name, each.documents(), each.setting) for each in manifest_sets()]
    clean = [_report(*each) for each in sets]
    sys.exit(0 if all(clean) else 1)


if __name__ == "__main__":
    main()
