#!/bin/sh
# Installs the package and its tested dependencies into a virtual environment. Run this script in the repository's root.
#   cluster/install.sh VENV cpu|cuda [EXTRA,EXTRA...]
# The Dockerfile runs this script; it also works on a host without containers. TORCH_CPU_INDEX is the index with torch's
# CPU builds (default: PyTorch's own index; empty: the index that pip is configured to use).
set -eu
venv=$1 variant=$2 extras=${3:-}
index=${TORCH_CPU_INDEX-https://download.pytorch.org/whl/cpu}

pip() {
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt "$@"
}

[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
case $variant in
    cuda) ;; # PyPI's torch for Linux includes the CUDA libraries
    cpu)
        pip ${index:+--index-url "$index"} "$(grep '^torch==' constraints.txt)"
        ;;
    *)
        echo "the variant must be cpu or cuda, not $variant" >&2
        exit 2
        ;;
esac
pip ".${extras:+[$extras]}"
