#!/usr/bin/env bash
# Set up everything and run every test: scripts/test.sh [pytest arguments]
#
# As root on Debian 12 it installs what is missing, makes build/venv and the VM lab, and needs nothing else. Without
# root it runs what can run, and its last lines say what could not. Machines of the VM tests run beside the other
# tests, one at a time, and their tests are reported last. The exit status is pytest's, which is not 0 when no test was
# selected either. VFERRY_REQUIRE_VM=1 makes a missing VM lab a failure.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
lab=${VMLAB_DIR:-$root/build/vmlab}
notes=()

scripts/needs.sh base || notes+=("some programs are missing, see the line of needs.sh above")
# Without these only some tests skip, and say why.
scripts/needs.sh vm test || notes+=("programs of some tests are missing, see the line of needs.sh above")
scripts/venv.sh
rm -f "$lab/unavailable"

status=0
build/venv/bin/python -m pytest "$@" </dev/null || status=$?

[ "$(id -u)" = 0 ] || notes+=("not root: tests in network namespaces can't run")
[ ! -s "$lab/unavailable" ] || notes+=("the VM tests could not run: $(cat "$lab/unavailable")")
for note in "${notes[@]}"; do echo "test.sh: $note"; done
case $status in
    0) echo "test.sh: passed" ;;
    5) echo "test.sh: FAILED: no test was selected" ;;
    *) echo "test.sh: FAILED: pytest ended with status $status" ;;
esac
exit "$status"
