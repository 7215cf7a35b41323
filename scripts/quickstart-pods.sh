#!/usr/bin/env bash
# Two pods on two VFs of one NIC, from ADD to DEL, shown step by step: scripts/quickstart-pods.sh PF
#
# As root, on the machine that has the PF: the VM of scripts/quickstart.sh, or a real one. The executables must be in
# build/bin. The network is conf/examples/sriov.conflist. Ends with what the host looks like now, compared to before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pf=${1:?the interface of a PF}
network=sriov-net
pods=(vferry-pod1 vferry-pod2)
macs=(02:00:5e:10:00:01 02:00:5e:10:00:02)
scratch=$(mktemp -d)
export NETCONFPATH=$PWD/conf/examples CNI_PATH=$PWD/build/bin CNI_IFNAME=net1

step() {
    printf '\n== %s  (%s s)\n' "$*" "$SECONDS"
}

fail() {
    echo "quickstart: $*" >&2
    exit 1
}

vferry() {
    "$CNI_PATH/vferry" "$@"
}

# Print what an attachment may not leave changed: the PF with its VFs, the VFs' interfaces, records, leases.
# Left out: the index, which a move gives anew; what the driver does in its own time; the address that igbvf takes for
# the permanent one after a reset; locks, which are empty files that stay; the database, whose leases are listed.
snapshot() {
    local place
    for place in "/sys/class/net/$pf" "/sys/class/net/$pf/device/"virtfn*/net/*; do
        [ -e "$place" ] || continue
        ip -d link show dev "${place##*/}" |
            sed -E 's/^[0-9]+: //; s/NO-CARRIER,//; s/,LOWER_UP//; s/ qdisc [a-z_]+//; s/ state [A-Z]+//; s/ permaddr [0-9a-f:]+//'
    done
    find /var/lib/cni -type f ! -path '*/runtime/*' ! -name '*.lock' ! -name 'leases.sqlite*' -exec sha256sum {} + \
        2>/dev/null | sort -k2 || true
    leases
}

leases() {
    python3 - /var/lib/cni/vferry/local/leases.sqlite <<'PYTHON'
import ipaddress, os, sqlite3, sys
if os.path.exists(sys.argv[1]):
    rows = sqlite3.connect(sys.argv[1]).execute("SELECT address, container_id FROM lease WHERE released_at IS NULL")
    for address, container_id in sorted(rows):
        print("lease", ipaddress.IPv6Address(address).ipv4_mapped or ipaddress.IPv6Address(address), container_id)
PYTHON
}

# Do it for both pods at the same time, as a node does; fail when one of them does.
both() {
    local first second
    "$@" 0 &
    first=$!
    "$@" 1 &
    second=$!
    wait "$first" && wait "$second"
}

add() {
    vferry run add "$network" "/run/netns/${pods[$1]}" \
        --device "${devices[$1]}" --cap-args "{\"mac\": \"${macs[$1]}\"}" >"$scratch/result-$1"
}

check() {
    vferry run check "$network" "/run/netns/${pods[$1]}"
    echo "${pods[$1]}: as it should be"
}

del() {
    vferry run del "$network" "/run/netns/${pods[$1]}"
    ip netns delete "${pods[$1]}"
    echo "${pods[$1]}: gone"
}

# Whatever failed, give everything back; only what was made here.
leave() {
    local status=$? index
    wait
    for index in 0 1; do
        if [ -e "$scratch/made-$index" ] && [ -e "/run/netns/${pods[index]}" ]; then del $index || true; fi
    done
    rm -rf "$scratch"
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT TERM

[ "$(id -u)" = 0 ] || fail "namespaces and VFs need root"
[ -e "/sys/class/net/$pf/device/sriov_numvfs" ] || fail "$pf is no PF; 'build/bin/vferry vfs' lists those of this machine"
# The VM sees the files of the machine it runs on, those of a user too, whose libraries root does not trust.
if [ "${VMLAB-}" = 1 ]; then
    mkdir -p /var/lib/cni
    mount -t tmpfs tmpfs /var/lib/cni
    [ -O build/runtime ] || chown -R root:root build/runtime
fi

step "the VFs of $pf"
# Read and written as text: a pipe gets columns that awk can count.
vferry vfs --pf "$pf" >"$scratch/vfs" || fail "cannot list the VFs of $pf"
cat "$scratch/vfs"
# With an interface on the host, and neither container nor netns.
awk 'NR > 1 && $5 != "-" && $6 == "-" && $8 == "-" { print $3 }' "$scratch/vfs" >"$scratch/devices"
mapfile -t devices <"$scratch/devices"
[ ${#devices[@]} -ge 2 ] || fail "$pf has ${#devices[@]} free VFs, two are needed; nothing was changed"
for pod in "${pods[@]}"; do
    [ ! -e "/run/netns/$pod" ] || fail "there is a netns $pod already; delete it: ip netns delete $pod"
done
snapshot >"$scratch/before"

step "ADD: VF ${devices[0]} becomes net1 of ${pods[0]}, VF ${devices[1]} becomes net1 of ${pods[1]}"
for index in 0 1; do
    ip netns add "${pods[index]}"
    touch "$scratch/made-$index"
done
both add
for index in 0 1; do
    cat "$scratch/result-$index"
    addresses[index]=$(sed -n 's,.*"address": "\([^/]*\)/.*,\1,p' "$scratch/result-$index")
done
[ "${addresses[0]}" != "${addresses[1]}" ] || fail "both pods got ${addresses[0]}"

step "who has what now"
vferry vfs --pf "$pf" | cat
ip -n "${pods[0]}" address show dev net1

step "${pods[0]} pings ${pods[1]} at ${addresses[1]}, both in the VLAN of conf/examples/sriov.conflist"
answered=
for _ in $(seq 20); do
    # The carrier of a VF comes a moment after the ADD.
    if ip netns exec "${pods[0]}" ping -c 2 -W 1 "${addresses[1]}"; then
        answered=1
        break
    fi
done
[ -n "$answered" ] || fail "no answer from ${addresses[1]}"

step "CHECK: everything is as the ADDs left it"
both check

step "DEL"
both del

step "what is left on the host, compared to before"
snapshot >"$scratch/after"
if ! diff -U0 "$scratch/before" "$scratch/after"; then
    fail "the host is not as it was before, see the lines above"
fi
echo "no difference in $(wc -l <"$scratch/before") lines: $pf and its VFs, the VFs' interfaces, records and leases under /var/lib/cni"
