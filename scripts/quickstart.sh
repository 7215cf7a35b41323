#!/usr/bin/env bash
# See vferry at work, from a bare clone, with one command: scripts/quickstart.sh [--pf IFNAME | --here]
#
#   (nothing)    in a VM with an emulated SR-IOV NIC: two pods on two VFs, from ADD to DEL; changes nothing here
#   --pf IFNAME  the same on a real NIC of this machine, on two VFs that nobody has; as root
#   --here       without any NIC: unique addresses from whereabouts; changes nothing outside a temporary directory
#
# Everything it makes is under build/. As root on Debian 12 it installs the packages it needs, anybody else is told
# which those are. Exit status: 0 all went well, 1 something is missing or failed, 2 bad usage.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
mode=vm
pf=

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$root/scripts/quickstart.sh"
}

while [ $# -gt 0 ]; do
    case $1 in
        --here) mode=here ;;
        --pf=*) mode=pf pf=${1#*=} ;;
        --pf) mode=pf pf=${2-} && set -- "$1" "${@:3}" ;;
        -h | --help) usage && exit ;;
        *) echo "quickstart.sh: unknown option $1; see --help" >&2 && exit 2 ;;
    esac
    shift
done
if [ "$mode" = pf ] && [ -z "$pf" ]; then
    echo "quickstart.sh: --pf needs the interface of a PF" >&2
    exit 2
fi
if [ "$mode" = pf ] && [ "$(id -u)" != 0 ]; then
    echo "quickstart.sh: --pf sets VFs of this machine, run it as root" >&2
    exit 1
fi

say() {
    printf 'quickstart: [%3d s] %s\n' "$SECONDS" "$*"
}

say "looking for what this machine needs"
sets=(base)
[ "$mode" != vm ] || sets+=(vm)
scripts/needs.sh "${sets[@]}" || exit 1

say "building the executables into build/bin"
scripts/install-binaries.sh --dest build/bin --runtime-dir build/runtime

# Two pods lease addresses, are checked, and give them back; whereabouts alone, as an interface plugin calls it.
here() {
    local scratch pod first second
    scratch=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$scratch'" EXIT
    cat >"$scratch/addresses.conflist" <<JSON
{
  "cniVersion": "1.1.0",
  "name": "addresses",
  "plugins": [{
    "type": "whereabouts",
    "ipam": {
      "type": "whereabouts",
      "datastore": "local",
      "dataDir": "$scratch/leases",
      "range": "192.168.100.0/24",
      "exclude": ["192.168.100.0/29"]
    }
  }]
}
JSON
    export NETCONFPATH=$scratch CNI_PATH=$root/build/bin
    run() {
        build/bin/vferry run "$1" addresses "$scratch/$2" --ifname net1 --cache-dir "$scratch"
    }
    say "the network:"
    cat "$scratch/addresses.conflist"
    for pod in pod1 pod2; do
        say "ADD for $pod"
        run add $pod | tee "$scratch/$pod.json"
    done
    first=$(grep '"address"' "$scratch/pod1.json")
    second=$(grep '"address"' "$scratch/pod2.json")
    [ "$first" != "$second" ] || {
        echo "quickstart.sh: both pods got $first" >&2
        return 1
    }
    say "ADD for pod1 again: the same address"
    run add pod1 | grep -qF "$first" || {
        echo "quickstart.sh: pod1 got another address" >&2
        return 1
    }
    say "CHECK of both, then DEL of both"
    for pod in pod1 pod2; do run check $pod; done
    for pod in pod1 pod2; do run del $pod; done
    say "the VFs of this machine:"
    build/bin/vferry vfs || true
}

case $mode in
    here) here ;;
    pf) scripts/quickstart-pods.sh "$pf" ;;
    vm)
        tests/vm/vmlab build
        say "booting a VM with an emulated NIC of 4 VFs; it is a few times slower than this machine"
        tests/vm/vmlab run --timeout 900 --vfs 4 -- scripts/quickstart-pods.sh eth0
        ;;
esac
say "done"
