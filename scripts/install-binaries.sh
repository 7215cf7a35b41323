#!/usr/bin/env bash
# Build the executables and install them: scripts/install-binaries.sh [OPTION]...
#
#   --dest DIR         where they go (/opt/cni/bin)
#   --python PATH      the interpreter they start with, 3.10 or later (/usr/bin/python3, else python3 of PATH)
#   --only NAME,NAME   these executables, not all
#   --runtime-dir DIR  where their libraries are unpacked (/var/lib/cni/vferry/runtime)
#   --backup DIR       where files of the same name that are not ours, such as Go plugins, are kept
#                      (vferry-replaced beside DEST)
#   --node-mounts FILE from a container: the mount namespace of the node that DEST is of, /proc/1/ns/mnt;
#                      there, too, --python must be 3.9 or later
#   --restore          put those files back, and build nothing
#
# It can run again at any time, on a node in use too: a running plugin keeps the file it started from, and every name
# is a whole executable at every moment. Exit status: 0 done, 1 failed, 2 bad usage.
set -euo pipefail
unset CDPATH
cd "$(dirname "$0")/.."

dest=/opt/cni/bin
python=
runtime_dir=/var/lib/cni/vferry/runtime
restore=
node_mounts=
install=()

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' scripts/install-binaries.sh
}

while [ $# -gt 0 ]; do
    case $1 in
        --dest=* | --python=* | --only=* | --runtime-dir=* | --backup=* | --node-mounts=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    case $1 in
        --restore) restore=1 && shift && continue ;;
        -h | --help) usage && exit ;;
        --dest | --python | --only | --runtime-dir | --backup | --node-mounts) ;;
        *) echo "install-binaries.sh: unknown option $1; see --help" >&2 && exit 2 ;;
    esac
    if [ -z "${2-}" ]; then
        echo "install-binaries.sh: $1 needs a value" >&2
        exit 2
    fi
    # Relative to where the caller stands, not to the repository.
    path=$2
    [ "${path#/}" != "$path" ] || path=$OLDPWD/$path
    case $1 in
        --dest) dest=$path ;;
        --python) case $2 in */*) python=$path ;; *) python=$2 ;; esac ;;
        --runtime-dir) runtime_dir=$path ;;
        --backup) install+=(--backup "$path") ;;
        --only) install+=(--only "$2") ;;
        --node-mounts) node_mounts=$path ;;
    esac
    shift 2
done
install+=(--dest "$dest")

# Print what the interpreter calls itself and the tag of what it can load; fail when it is too old or none.
describe() {
    "$1" -I -c '
import importlib.machinery, sys
if sys.version_info < (3, 10):
    sys.exit(1)
print(sys.executable, importlib.machinery.EXTENSION_SUFFIXES[0].strip(".").removesuffix(".so"))' 2>/dev/null
}

described=
for candidate in ${python:-/usr/bin/python3 python3}; do
    if described=$(describe "$candidate"); then break; fi
done
if [ -z "$described" ]; then
    echo "install-binaries.sh: ${python:-python3} is no Python 3.10 or later; name one with --python PATH" >&2
    exit 1
fi
read -r python tag <<<"$described"

# What starts nowhere must not take the place of what does. Where the versions differ, the agent alone runs plugins.
if [ -n "$node_mounts" ] && ! nsenter --mount="$node_mounts" -- \
    "$python" -IS -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
    echo "install-binaries.sh: on the node $python is no Python 3.9 or later; name one with --python PATH" >&2
    exit 1
fi

if [ -n "$restore" ]; then
    exec "$python" zipapp/install.py --restore "${install[@]}"
fi

# One at a time: the environment below is shared.
mkdir -p build
exec 9>build/.install-lock
flock 9

# The environment that is packed: exactly the lock, and thrown away when the lock changes.
venv=build/venv-$tag
lock=$(sha256sum zipapp/requirements.lock)
if [ "$(cat "$venv/lock" 2>/dev/null)" != "$lock" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    echo "install-binaries.sh: making $venv"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "install-binaries.sh: $python cannot make environments; as root: apt-get install python3-venv" >&2
        exit 1
    fi
    "$python" -m venv --clear "$venv"
    echo "install-binaries.sh: fetching the libraries of zipapp/requirements.lock"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
        --only-binary :all: --requirement zipapp/requirements.lock
    echo "$lock" >"$venv/lock"
fi

# An archive knows its runtime's place: builds for tests and for the node do not displace each other.
output=build/archive-$tag-$(cksum <<<"$runtime_dir" | cut -d' ' -f1)
archive=$("$venv/bin/python" zipapp/build.py --output "$output" --python "$python" --runtime-dir "$runtime_dir")
"$venv/bin/python" zipapp/install.py --archive "$archive" "${install[@]}"
