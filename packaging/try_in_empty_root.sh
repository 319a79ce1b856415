#!/bin/sh
# Run the single file where there is nothing else: a root with the C library and its loader, an empty temporary folder,
# /proc and /dev. No Python, no shell, no network but the loopback. Wants root, for chroot and mounts.
#
#   packaging/try_in_empty_root.sh FILE [ARGUMENT ...]      (without arguments: demo)
set -eu
[ $# -ge 1 ] || { sed -n '5s/^#  *//p' "$0" >&2; exit 2; }
file=$(realpath "$1")
shift
[ $# -ge 1 ] || set -- demo

root=$(mktemp -d "${TMPDIR:-/tmp}/pylon-empty-XXXXXX")
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/proc" "$root/dev" "$root/tmp"
cp "$file" "$root/pylon"

# The loader stands where the file says; the rest of the C library beside the libc that it finds.
loader=$(ldd "$file" | awk '$1 ~ /ld-linux/ { print $1 }')
libraries=$(dirname "$(ldd "$file" | awk '$1 == "libc.so.6" { print $3 }')")
mkdir -p "$root$(dirname "$loader")" "$root$libraries"
cp -L "$loader" "$root$loader"
for name in libc.so.6 libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2; do
    [ ! -e "$libraries/$name" ] || cp -L "$libraries/$name" "$root$libraries/"
done
find "$root" -type f | sed "s|^$root|  |" >&2

# A mount namespace, a network without anything but lo, processes that nobody survives.
unshare --mount --net --pid --fork --kill-child sh -euc '
    root=$1
    shift
    ip link set lo up
    mount -t proc proc "$root/proc"
    mount -t tmpfs -o size=1m,mode=755 dev "$root/dev"
    for device in null zero full random urandom; do
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mount -t tmpfs -o size=2g,mode=1777 tmp "$root/tmp"
    status=0
    env -i HOME=/tmp LANG=C.UTF-8 "$(command -v chroot)" "$root" /pylon "$@" || status=$?
    used=$(du -sm "$root/tmp" | cut -f1)
    echo "left in the temporary folder: $used MB" >&2
    exit $status
' sh "$root" "$@"
