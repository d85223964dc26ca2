#!/bin/sh
# Make the virtual environment and install the locked packages into it.
# Usage: install.sh PYTHON VENV LOCK
set -eu
python=$1 venv=$2 lock=$3

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11; set PYTHON=... to a newer one" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "installing the system package python3-venv (needed to make a virtual environment)"
    run=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "error: run as root or install sudo and python3-venv" >&2; exit 1; }
        run=sudo
    fi
    $run apt-get update -q >/dev/null
    $run env DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-venv >/dev/null
fi
echo "installing the locked packages into $venv (takes a minute the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        echo "error: the packages could not be installed; the reason is above" >&2
        exit 1
    }
}
install --require-hashes -r "$lock"
install --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import conclave'
