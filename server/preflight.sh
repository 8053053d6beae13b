#!/bin/sh
# What an installation needs of the machine; one sentence for each thing that is missing.
# usage: preflight.sh PYTHON
python=$1

fail() {
    echo "make: $1" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "Triton runs on Linux; this is $(uname -s)."
[ -n "$python" ] && command -v "$python" >/dev/null ||
    fail "Python 3.11 was not found; install it, or name it: make PYTHON=/path/to/python3.11 ..."
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
    fail "$python does not run; name a Python 3.11: make PYTHON=/path/to/python3.11 ..."
[ "$version" = 3.11 ] ||
    fail "Python 3.11 is needed, $python is $version; name one: make PYTHON=/path/to/python3.11 ..."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python lacks the module venv; install it (Debian and Ubuntu: apt install python3.11-venv)."
compiler=$("$python" -c 'import os, sysconfig; print((os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0])')
command -v "$compiler" >/dev/null ||
    fail "a C compiler is needed, $compiler was not found (Debian and Ubuntu: apt install gcc)."
header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include") + "/Python.h")')
[ -f "$header" ] ||
    fail "Python's headers are missing, no $header (Debian and Ubuntu: apt install python3.11-dev)."
