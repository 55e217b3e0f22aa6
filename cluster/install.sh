#!/bin/sh
# Installs the service and its tested dependencies into a virtual environment. Run this script in the repository's root.
#   cluster/install.sh [--editable] VENV [auto|cpu|cuda|cu126] [EXTRA,EXTRA...]
#   cluster/install.sh --locked VENV cpu|cuda          exactly the packages of cluster/locks, by their hashes
# The Makefile, the Dockerfile and hosts without containers use it. uv installs; where uv cannot be had, pip does.
#
# The second argument chooses torch's build. To change the build later, remove the virtual environment.
#   cpu     PyTorch's build without CUDA: 190 MB
#   cuda    the build of the package index: on Linux with the libraries of CUDA 13, about 3 GB; needs driver 580 or newer
#   cu126   a build for older drivers, from PyTorch's index; the index has others
#   auto    cpu without an NVIDIA GPU; cuda with one; cu126 if its driver is older than CUDA 13
#
# Environment variables:
#   PYTHON            the Python for a new virtual environment (default: python3)
#   TORCH_INDEX       the folder of PyTorch's indexes (default: https://download.pytorch.org/whl)
#   TORCH_CPU_INDEX   the index with the CPU builds (default: cpu in TORCH_INDEX; empty: the package index)
set -eu

fail() {
    echo "$*" >&2
    exit 2
}

editable='' is_locked=''
case ${1-} in
    --editable) editable=--editable && shift ;;
    --locked) is_locked=yes && shift ;;
esac
[ $# -ge 1 ] || fail "usage: cluster/install.sh [--editable | --locked] VENV [auto|cpu|cuda|cu126] [EXTRA,EXTRA...]"
venv=$1 variant=${2:-auto} extras=${3:-}
python=$venv/bin/python
pinned() { grep "^$1==" constraints.txt; }

# Prints the index that has the wanted build of torch, or nothing for the package index.
torch_index() {
    indexes=${TORCH_INDEX:-https://download.pytorch.org/whl}
    case $1 in
        cpu) echo "${TORCH_CPU_INDEX-$indexes/cpu}" ;;
        cu[0-9]*) echo "$indexes/$1" ;;
        cuda) ;;
    esac
}

suitable_build() {
    if [ "$(uname -s)" != Linux ]; then
        echo cuda # the package index has no CUDA builds for other systems
    elif ! driver=$(nvidia-smi 2>/dev/null); then
        echo cpu
    else
        case $(echo "$driver" | sed -n 's/.*CUDA[A-Z ]* Version: *\([0-9]*\).*/\1/p') in
            [1-9] | 1[0-2]) echo cu126 ;; # its CUDA libraries work with all drivers for CUDA 12
            *) echo cuda ;;
        esac
    fi
}

# Tells whether an index has the pinned torch. An unreachable index costs 5 seconds here, and a minute of retries in pip.
has_torch() {
    "$python" - "$1" "$(pinned torch)" <<'END'
import re, signal, sys, urllib.request

index, pin = sys.argv[1:]
signal.alarm(15)  # also ends a name look-up, which has no timeout of its own
try:
    with urllib.request.urlopen(f"{index}/torch/", timeout=5) as page:
        names = page.read().decode()
except OSError:
    sys.exit(1)
sys.exit(not re.search(re.escape(pin.replace("==", "-")) + r"(\+|%2B|-)", names))
END
}

is_installed() {
    "$python" - "$1" 2>/dev/null <<'END'
import importlib.metadata, sys

name, _, version = sys.argv[1].partition("==")
sys.exit(importlib.metadata.version(name).partition("+")[0] != version)
END
}

# Prints one of pip's settings; its environment variables come before its files.
pip_setting() {
    printf '%s\n' "$pip_settings" | sed -nE "s/^(:env:|global|install)\.$1='(.*)'\$/\2/p" | sed 's/\\n/ /g; q'
}

# Sets a variable for uv to one of pip's settings, unless the variable is set. uv does not read pip's configuration, but
# mirrors, wheels on disk and certificates apply to both.
share() {
    setting=$(pip_setting "$2")
    [ -z "$setting" ] || eval "export $1=\"\${$1:-\$setting}\""
}

find_uv() {
    if uv --version >/dev/null 2>&1; then
        echo uv
    elif [ -x "$venv/bin/uv" ] || pip --retries 1 --timeout 15 install "$(pinned uv)" >/dev/null 2>&1; then
        echo "$venv/bin/uv"
    fi
}

pip() { "$python" -m pip --quiet --disable-pip-version-check "$@"; }

install_with_uv() (
    pip_settings=$("$python" -m pip config list 2>/dev/null)
    share UV_INDEX_URL index-url
    share UV_EXTRA_INDEX_URL extra-index-url
    share UV_FIND_LINKS find-links
    share UV_INSECURE_HOST trusted-host
    share SSL_CERT_FILE cert
    # The best version of all indexes counts, as for pip, and not only the versions of the first index with the package.
    [ -z "${UV_EXTRA_INDEX_URL-}" ] || export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
    UV_FIND_LINKS=$(echo "${UV_FIND_LINKS-} $torch_page" | xargs | tr ' ' ,)
    export UV_FIND_LINKS
    # As pip does: the image's user cannot write bytecode, and without it a start of the service takes minutes.
    export UV_COMPILE_BYTECODE="${UV_COMPILE_BYTECODE:-1}"
    if [ -n "$is_locked" ]; then
        "$1" pip install --quiet --python "$python" --require-hashes --only-binary :all: --requirement "$lock" &&
            "$1" pip install --quiet --python "$python" --no-deps --no-build-isolation --no-index .
    else
        "$1" pip install --quiet --python "$python" --constraint constraints.txt $editable "$package"
    fi
)

install_with_pip() {
    if [ -n "$is_locked" ]; then
        pip install ${torch_page:+--find-links "$torch_page"} --require-hashes --only-binary :all: --requirement "$lock" &&
            pip install --no-deps --no-build-isolation --no-index .
    else
        pip install --constraint constraints.txt ${torch_page:+--find-links "$torch_page"} $editable "$package"
    fi
}

lock=cluster/locks/$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)-$variant.txt
if [ -n "$is_locked" ]; then
    [ -z "$extras" ] || fail "--locked takes no extras: the lock has those of the image"
    [ -e "$lock" ] || fail "there is no lock $lock; without --locked, the versions of constraints.txt are installed"
fi

if [ ! -x "$python" ]; then
    base=${PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed; select one with PYTHON=/path/to/python3.11"
    "$base" -m venv "$venv"
fi

# A page with PyTorch's builds, next to the package index: torch 2.0+cpu counts as newer than torch 2.0.
torch_page=
case $variant in
    auto) build=$(suitable_build) ;;
    cpu | cuda | cu[0-9]*) build=$variant ;;
    *) fail "the variant must be auto, cpu, cuda or a build of PyTorch's index such as cu126, not $variant" ;;
esac
index=$(torch_index "$build")
if [ -n "$index" ] && ! is_installed "$(pinned torch)"; then
    if has_torch "$index"; then
        torch_page=$index/torch/
    elif [ "$variant" = auto ]; then
        echo "$(pinned torch) cannot be had from $index; the package index's build may bring CUDA, about 3 GB" >&2
    else
        fail "$(pinned torch) cannot be had from $index; for the package index's build, use cuda or set TORCH_CPU_INDEX="
    fi
fi

package=".${extras:+[$extras]}"
uv=$(find_uv)
if [ -z "$uv" ]; then
    echo "uv is not available; pip installs instead, which takes longer" >&2
    install_with_pip
elif ! install_with_uv "$uv"; then
    echo "uv could not install; trying pip" >&2
    install_with_pip
fi
