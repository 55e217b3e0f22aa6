#!/bin/sh
# Installs the package, with the versions it was tested with, into a virtual environment. Run it in the repository's root.
#   cluster/install.sh VENV cpu|cuda [EXTRA,EXTRA...]
# The Dockerfile runs it, and so can a host without containers. TORCH_CPU_INDEX: index with torch's CPU builds, by default
# PyTorch's own; empty for the index that pip uses anyway.
set -eu
venv=$1 variant=$2 extras=${3:-}
index=${TORCH_CPU_INDEX-https://download.pytorch.org/whl/cpu}

pip() {
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt "$@"
}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
case $variant in
    cuda) ;; # PyPI's torch for Linux is built for CUDA, and brings it
    cpu)
        pip ${index:+--index-url "$index"} "$(grep '^torch==' constraints.txt)"
        ;;
    *)
        echo "the variant is cpu or cuda, not $variant" >&2
        exit 2
        ;;
esac
pip ".${extras:+[$extras]}"
