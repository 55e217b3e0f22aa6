#!/bin/sh
# Installs the package and what it was tested with into a virtual environment; run in the repository's root.
#   cluster/install.sh VENV cpu|cuda [EXTRA,EXTRA...]
# The Dockerfile's step, and the same on a host without containers. TORCH_CPU_INDEX names where torch's CPU builds are
# when it is not PyTorch's own index.
set -eu
venv=$1 variant=$2 extras=${3:-}

pip() {
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt "$@"
}

case $variant in
    cuda) ;; # PyPI's torch for Linux is built for CUDA, and brings it
    cpu)
        torch=$(grep '^torch==' constraints.txt)
        pip --index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" "$torch"
        ;;
    *)
        echo "the variant is cpu or cuda, not $variant" >&2
        exit 2
        ;;
esac
pip ".${extras:+[$extras]}"
