#!/bin/sh
# Make the virtual environment and install the locked packages into it.
# Usage: install.sh PYTHON VENV LOCK
# Or: install system packages that some tests use, as far as they are missing.
# Usage: install.sh --system PACKAGE...
set -eu
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() {
    "$@" >"$log" 2>&1 || {
        cat "$log" >&2
        echo "error: the installation failed; the reason is above" >&2
        exit 1
    }
}

if [ "$1" = --system ]; then
    shift
    run= missing=
    for package in "$@"; do
        dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
    done
    [ -n "$missing" ] || exit 0
    [ "$(id -u)" = 0 ] || run=sudo
    echo "installing the system packages$missing (some tests need them)"
    install="apt-get update -q && env DEBIAN_FRONTEND=noninteractive apt-get install -q -y$missing"
    $run sh -c "$install" >"$log" 2>&1 || {
        tail -n 3 "$log" >&2
        echo "not installed:$missing; tests that need them say so and are skipped"
    }
    exit 0
fi
python=$1 venv=$2 lock=$3

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11; set PYTHON=... to a newer one" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "installing the system package python3-venv (needed to make a virtual environment)"
    run=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "error: run as root, or install sudo or python3-venv" >&2; exit 1; }
        run=sudo
    fi
    quietly $run apt-get update -q
    quietly $run env DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-venv
fi
echo "installing the packages of $lock into $venv (takes a minute the first time)"
[ -x "$venv/bin/python" ] || quietly "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --quiet --disable-pip-version-check install"
quietly $pip --require-hashes -r "$lock"
quietly $pip --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import conclave'
