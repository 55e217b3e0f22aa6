#!/bin/sh
# Installs the package and what it was tested with into a virtual environment; run in the repository's root.
#   cluster/install.sh VENV cpu|cuda [EXTRA,EXTRA...]
# The Dockerfile's step, and the same on a host without containers. TORCH_CPU_INDEX is where torch's CPU builds are, if not
# PyTorch's own index; empty for the index that pip uses anyway.
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
