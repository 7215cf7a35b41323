#!/usr/bin/env bash
# Install what this machine needs, or name it: scripts/needs.sh SET...
#
#   base  build the executables, look at links and namespaces
#   vm    the VM lab (tests/vm/lab): QEMU 8 or later, and what unpacks a kernel and builds a module
#   test  peers and linters that the tests call
#
# As root on Debian 12 it installs what is missing, and a second run touches nothing. Anybody else is told in one
# line what to install. Exit status: 0 all there, 2 bad usage, 3 something is missing.
set -euo pipefail
# A user's PATH need not have the administrator's programs.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# package, and the command or file that shows it is there
declare -A needs=(
    [base]="
        git git
        python3-venv ensurepip
        iproute2 ip
        iputils-ping ping
        kmod modprobe
        procps sysctl
        strace strace
        util-linux nsenter"
    [vm]="
        qemu-system-x86 qemu8
        busybox-static /bin/busybox
        cpio cpio
        dpkg dpkg-deb
        gcc-12 gcc-12
        kmod modprobe
        make make
        util-linux setpriv
        xz-utils xz"
    [test]="
        containerd ctr
        containernetworking-plugins /usr/lib/cni/host-device
        etcd-server etcd
        shellcheck shellcheck
        systemd systemd-analyze"
)

has() {
    case $1 in
        # Debian splits ensurepip from python3, and venv makes no pip without it.
        ensurepip) python3 -c 'import ensurepip, venv' ;;
        # igb, the NIC with VFs, came with QEMU 8; Debian 12 itself has 7.2.
        qemu8) [ "$(qemu-system-x86_64 --version | sed -n 's/.*version \([0-9]*\).*/\1/p')" -ge 8 ] ;;
        # The initramfs has no libc: a busybox that ldd can list is of no use.
        /bin/busybox) [ -x "$1" ] && ! ldd "$1" ;;
        /*) [ -e "$1" ] ;;
        *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

sets=("$@")
[ ${#sets[@]} -gt 0 ] || sets=(base vm test)
missing=()
backports=()
for set in "${sets[@]}"; do
    if [ -z "${needs[$set]-}" ]; then
        echo "needs.sh: no set '$set'; there are base, vm, test" >&2
        exit 2
    fi
    while read -r package evidence; do
        if [ -z "$package" ] || has "$evidence"; then continue; fi
        if [ "$package" = qemu-system-x86 ]; then backports=("$package"); else missing+=("$package"); fi
    done <<<"${needs[$set]}"
done
[ $((${#missing[@]} + ${#backports[@]})) -gt 0 ] || exit 0
# A package can be in two sets.
if [ ${#missing[@]} -gt 0 ]; then mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u); fi

# shellcheck source=/dev/null
distro=$(. /etc/os-release 2>/dev/null && echo "${ID-}-${VERSION_CODENAME-}") || distro=
suite=bookworm-backports
if [ "$(id -u)" != 0 ] || [ "$distro" != debian-bookworm ]; then
    line=${missing[*]:+"apt-get install ${missing[*]}"}
    if [ ${#backports[@]} -gt 0 ]; then
        line=${line:+"$line && "}"apt-get install -t $suite ${backports[*]} (8.0 or later)"
    fi
    [ "$distro" = debian-bookworm ] || line="$line   (names of Debian 12; this is ${distro:-unknown})"
    echo "needs.sh: as root: $line" >&2
    exit 3
fi

# Print a source file with the suite added beside Debian's own, in its first fitting entry; fail if there is none.
# Other archives may have a suite of that name too, but not with the component main under Debian's key or path; the
# path is a list of mirrors on cloud images.
with_suite() {
    awk -v suite=$suite -v deb822="$([[ $1 == *.sources ]] && echo 1)" '
        function ours(text) { return text ~ /\/debian(\.list|\/)?([ \t\n]|$)/ || text ~ /debian-archive-keyring/ }
        function flush_stanza(    i) {
            if (!done && ours(stanza) && stanza ~ /(^|\n)Components:[^\n]*[ \t]main([ \t\n]|$)/)
                for (i = 1; i <= n; i++)
                    if (line[i] ~ /^Suites:/ && (line[i] " ") ~ /[ \t]bookworm[ \t]/) { line[i] = line[i] " " suite; done = 1; break }
            for (i = 1; i <= n; i++) print line[i]
            n = 0; stanza = ""
        }
        deb822 { if ($0 ~ /^[ \t]*$/) { flush_stanza(); print; next } line[++n] = $0; stanza = stanza $0 "\n"; next }
        { print }
        !done && /^deb[ \t]/ && ours($0) && / bookworm +([a-z-]+ +)*main( |$)/ { sub(/ bookworm /, " " suite " "); print; done = 1 }
        END { if (deb822) flush_stanza(); exit !done }
    ' "$1"
}

add_suite() {
    local file new
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list /etc/apt/sources.list.d/*; do
        case $file in *.sources | *.list) ;; *) continue ;; esac
        [ -f "$file" ] || continue
        new=$file.vferry-new
        if with_suite "$file" >"$new"; then
            chmod --reference="$file" "$new"
            mv "$new" "$file"
            echo "needs.sh: added $suite to $file" >&2
            return
        fi
        rm -f "$new"
    done
    echo "needs.sh: no source of Debian's own in /etc/apt names bookworm main; add the suite $suite" >&2
    exit 3
}

# A package's service must not start here: these are peers for tests. The lock is waited for: a machine's first
# minutes belong to its own updates. What apt says matters only when it fails.
apt() {
    local log
    log=$(mktemp)
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq "$@" </dev/null >"$log" 2>&1 && {
        rm -f "$log"
        return
    }
    cat "$log" >&2
    rm -f "$log"
    echo "needs.sh: apt-get $* failed" >&2
    exit 3
}

if [ ${#backports[@]} -gt 0 ] &&
    ! grep -Eqs "^[^#]*[[:space:]]$suite([[:space:]]|$)" /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; then
    add_suite
fi
echo "needs.sh: installing ${missing[*]} ${backports[*]}" >&2
apt update
[ ${#missing[@]} -eq 0 ] || apt install --no-install-recommends -y "${missing[@]}"
[ ${#backports[@]} -eq 0 ] || apt install --no-install-recommends -y -t $suite "${backports[@]}"
