#!/usr/bin/env bash
# Make build/venv: what pyproject.toml asks for, in the versions of the two locks; at once when it is so already.
# $PYTHON chooses the interpreter.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/build/venv
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "venv.sh: $python is not Python 3.10 or later; set PYTHON" >&2
    exit 1
}
mkdir -p "$root/build"
exec 9>"$root/build/venv.lock"
flock 9

# A venv knows its own place and its interpreter's, so a moved clone and an upgraded Python need a new one.
made_for="$root $("$python" -c 'import sys; print(sys.version)')"
locks=("$root/zipapp/requirements.lock" "$root/tests/requirements.lock")
asked="$made_for $(cat "$root/pyproject.toml" "${locks[@]}")"
[ "$(cat "$venv/made-from" 2>/dev/null)" != "$asked" ] || exit 0
if [ "$(cat "$venv/made-for" 2>/dev/null)" != "$made_for" ]; then
    echo "venv.sh: making $venv" >&2
    "$python" -m venv --clear "$venv"
    printf '%s\n' "$made_for" >"$venv/made-for"
fi
echo "venv.sh: installing libraries" >&2
# Without the hashes, which would be asked of the project itself too; what is packed is fetched apart, with them.
sed -nE 's/^([a-z].*==[^ ]*)( ;[^\\]*)?( \\)?$/\1\2/p' "${locks[@]}" >"$venv/constraints"
# The descriptor of the lock must not outlive this script in a child.
"$venv/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$venv/constraints" \
    --editable "${root}[dev]" >&2 9>&-
# Compiled now, for machines that see this directory read-only.
"$venv/bin/python" -m compileall -q "$venv/lib" >/dev/null 2>&1 9>&- || true
printf '%s\n' "$asked" >"$venv/made-from"
