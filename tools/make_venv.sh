#!/usr/bin/env bash
# Make .venv beside this folder: the pinned dependencies of requirements.txt and this project, editable.
#
#   tools/make_venv.sh              with the first Python >= 3.11 found
#   PYTHON=python3.12 tools/make_venv.sh
#
# A second call returns at once. A call that was interrupted is done again from the start (downloads are cached by pip).
# Calls at the same time wait for each other. pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) are honoured.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
stamp=$venv/.installed      # holds the key of what is installed; written last
partial=$venv/.incomplete   # there while an install is under way
log=$venv/install.log

say() { printf 'venv: %s\n' "$*"; }

# --- what an installed environment depends on -----------------------------------------------------------------------
digest() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
install_key() {
    (cd "$root" && cat requirements.txt pyproject.toml setup.py tools/make_venv.sh && printf '%s' "$root") | digest
}
is_current() {
    [ -f "$stamp" ] && [ ! -e "$partial" ] && [ -x "$venv/bin/python" ] && [ "$(cat "$stamp")" = "$(install_key)" ] &&
        { [ -z "${PYTHON:-}" ] || same_python; }
}
python_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
same_python() { [ "$(python_version "$PYTHON")" = "$(python_version "$venv/bin/python")" ]; }

# --- prerequisites --------------------------------------------------------------------------------------------------
is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}
# how PACKAGE-OF-APT PACKAGE-OF-DNF PACKAGE-OF-BREW: the command that installs it here
how() {
    local sudo=
    [ "$(id -u)" = 0 ] || sudo='sudo '
    if command -v apt-get >/dev/null; then echo "${sudo}apt-get install $1"
    elif command -v dnf >/dev/null; then echo "${sudo}dnf install $2"
    elif command -v brew >/dev/null; then echo "$3"
    else echo "apt: $1, dnf: $2, macOS: $3"; fi
}
header_exists() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}
compiler_works() { echo '#include <vector>' | "${CXX:-c++}" -x c++ -fsyntax-only - >/dev/null 2>&1; }
check_prerequisites() {
    local missing=() python minor
    python=$(find_python)
    if [ -z "$python" ]; then
        missing+=("Python 3.11 or later (${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>&1 | head -n 1)):"$'\n'"        $(
            how 'python3 python3-venv python3-dev' 'python3.12 python3.12-devel' 'brew install python'), or name one: make venv PYTHON=/path/to/python3.12")
    else
        minor=$(python_version "$python")
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            missing+=("the venv module of $python: $(how "python$minor-venv" "python$minor" 'brew install python')")
        header_exists "$python" ||
            missing+=("the headers of $python (Python.h): $(
                how "python$minor-dev" "python$minor-devel" 'brew install python')")
    fi
    compiler_works ||
        missing+=("a C++ compiler (${CXX:-c++} does not compile): $(how g++ gcc-c++ 'xcode-select --install'), or name one: CXX=...")
    command -v make >/dev/null || missing+=("make: $(how make make 'xcode-select --install')")
    if [ ${#missing[@]} -gt 0 ]; then
        say "missing on this machine:"
        printf '  - %s\n' "${missing[@]}"
        exit 1
    fi >&2
    interpreter=$python
}

# --- install --------------------------------------------------------------------------------------------------------
child=
stop() {
    trap - INT TERM HUP
    if [ -n "$child" ]; then kill "$child" 2>/dev/null || true; fi
    say "interrupted; the next call starts again" >&2
    exit 130
}
# step TEXT COMMAND...: run it with its output in the log and a sign of life every 15 seconds
step() {
    local start=$SECONDS rc=0 beat=15
    say "$1"
    shift
    "$@" >>"$log" 2>&1 9>&- &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.5
        if [ $((SECONDS - start)) -ge $beat ]; then
            say "    $((SECONDS - start)) s, $(du -sm "$venv" 2>/dev/null | cut -f1) MB"
            beat=$((beat + 15))
        fi
    done
    wait "$child" || rc=$?
    child=
    if [ $rc -ne 0 ]; then
        tail -n 25 "$log" >&2
        say "failed; the whole output is in $log" >&2
        exit 1
    fi
}
install_all() {
    local pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-input)
    # an interrupted pip can leave half a package that looks whole; another Python needs another folder
    if [ -e "$partial" ] || ! "$venv/bin/python" -c '' 2>/dev/null || { [ -n "${PYTHON:-}" ] && ! same_python; }; then
        rm -rf "$venv"
    fi
    mkdir -p "$venv"
    touch "$partial"
    rm -f "$stamp"
    : >"$log"
    [ -x "$venv/bin/python" ] || step "creating .venv with $("$interpreter" -V)" "$interpreter" -m venv "$venv"
    grep -v -e '^deepspeed==' -e '^seqeval==' "$root/requirements.txt" >"$venv/wheels.txt"
    step "installing $(grep -c == "$venv/wheels.txt") pinned packages (torch is the large one)" \
        "${pip[@]}" -r "$venv/wheels.txt"
    # the build imports torch, and looks for nvcc where torch sees a GPU: nothing is compiled now, so it need not look
    step "building deepspeed and seqeval" env DS_BUILD_OPS=0 DS_ACCELERATOR=cpu PATH="$venv/bin:$PATH" \
        "${pip[@]}" --no-build-isolation -r "$root/requirements.txt"
    step "installing this project, editable, with its kernels" "${pip[@]}" --no-build-isolation --no-deps -e "$root"
    # an installation does not fail for a kernel, so ask; without its library torch's own operators run
    if "$venv/bin/python" -m kernels 2>>"$log" | grep 'could not be built' >&2; then
        say "torch's own operators run in its place; to try again: python -m kernels --build" >&2
    fi
    install_key >"$stamp"
    rm -f "$partial"
}

if is_current; then exit 0; fi
check_prerequisites
# a lock on an open file ends with its holder, however that ends; python serves where there is no flock command
exec 9<"$root/tools/make_venv.sh"
if ! "$interpreter" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
    say "another call is installing; waiting for it"
    "$interpreter" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
fi
if is_current; then exit 0; fi
trap stop INT TERM HUP
started=$SECONDS
install_all
say "ready after $((SECONDS - started)) s"
