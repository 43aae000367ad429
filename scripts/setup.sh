#!/bin/sh
# Make .venv fit for an extra of pyproject.toml: scripts/setup.sh demo|dev. Called by the Makefile, which stamps the
# result. `scripts/setup.sh check` drops the stamps of a .venv that must not be trusted: it does not run, or it was
# stamped by another Python or before the checkout moved.
# PYTHON: the interpreter to use (default: the first that qualifies).
set -eu

venv=.venv
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# 0 when an interpreter runs, is at least 3.11 and can make environments; pyenv shims exist but may not run.
qualifies() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

# Where .venv stands and which Python runs it; nothing when it does not work.
identity() {
    "$venv/bin/python" -c 'import sys, pip; print(sys.prefix, "%d.%d" % sys.version_info[:2])' 2>/dev/null || true
}

# python3 goes first: it is what the system meant, and the one most likely to have wheels at hand.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        qualifies "$PYTHON" && echo "$PYTHON" && return
        echo "setup: PYTHON=$PYTHON does not run, is older than 3.11, or lacks venv. Give another, or none." >&2
        return 1
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if qualifies "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "setup: found no Python >= 3.11 with venv among python3, python3.13, python3.12, python3.11, python." \
        "Install one (Debian: also python3-venv), or say where it is: make PYTHON=/path/to/python." >&2
    return 1
}

# Is .venv usable as it stands? Yes when it runs, is new enough, and is the Python asked for, if one was.
usable() {
    [ -n "$(identity)" ] && qualifies "$venv/bin/python" || return 1
    [ -z "${PYTHON:-}" ] || [ "$(version "$PYTHON" 2>/dev/null)" = "$(version "$venv/bin/python")" ]
}

case "${1:-}" in
check)
    if [ -d "$venv" ]; then
        usable && [ "$(identity)" = "$(cat "$venv/.identity" 2>/dev/null)" ] || rm -f "$venv/.demo-stamp" "$venv/.dev-stamp"
    fi
    ;;
demo | dev)
    if ! usable; then
        python=$(find_python)
        [ ! -e "$venv" ] || echo "setup: $venv does not work with $python; making it anew"
        "$python" -m venv --clear "$venv"
    fi
    echo "setup: installing argprune[$1] into $venv with Python $(version "$venv/bin/python")"
    # torch first, so that what depends on it finds the build at hand; it brings the setuptools that builds argprune.
    # Modules are compiled when first imported: compiling all of them would take longer than using them.
    pip install -qq --no-compile -c constraints.txt torch==2.13.0 setuptools
    pip install -qq --no-compile -c constraints.txt --no-build-isolation -e ".[$1]"
    identity >"$venv/.identity"
    ;;
*)
    echo "usage: scripts/setup.sh demo|dev|check" >&2
    exit 2
    ;;
esac
