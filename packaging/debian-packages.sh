#!/bin/sh
# debian-packages.sh GROUP...: installs the Debian packages of a group that this machine lacks.
#   build   Python 3.11 with headers, a C compiler, make: what the extensions and the binary need
#   demo    build, and runc with a static busybox: a real container without a registry
#   test    demo and image, and the container runtimes that the end-to-end tests drive
#   bench   build, and the program that argusd is compared with
#   sanitizers  build, and the runtimes of AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
#   kubernetes  demo and image, and what a node needs beside Kubernetes itself
#   image   build, and buildah with debootstrap: the scratch image without a docker daemon
# As root on Debian it installs, without starting any service; elsewhere it names what is missing and goes on:
# the step that needs it will say so itself. A tool that came from another source counts as present.
set -eu

# package and the shell condition that shows it is there
packages() {
    case $1 in
        build)
            echo 'python3.11-venv   packaging/find-python.sh'
            echo 'python3.11-dev    packaging/find-python.sh'
            echo 'gcc               command -v gcc'
            echo 'libc6-dev         echo "#include <stdio.h>" | gcc -E -'
            echo 'binutils          command -v objcopy && command -v objdump'
            echo 'make              command -v make'
            ;;
        demo)
            packages build
            echo 'runc              command -v runc'
            echo 'busybox-static    grep -q "BusyBox v" "$(command -v busybox)" && ! readelf -l "$(command -v busybox)" | grep INTERP'
            ;;
        bench)
            packages build
            echo 'inotify-tools     command -v inotifywait'
            ;;
        sanitizers)
            packages build
            echo 'libgcc-12-dev     test -e "$(gcc -print-file-name=libtsan.so)" && test -e "$(gcc -print-file-name=libasan.so)"'
            ;;
        image)
            packages build
            echo 'buildah           command -v buildah'
            echo 'debootstrap       command -v debootstrap'
            echo 'ca-certificates   test -e /etc/ssl/certs/ca-certificates.crt'
            ;;
        test)
            packages demo
            packages image
            echo 'containerd        command -v containerd && command -v ctr'
            echo 'docker.io         command -v dockerd && command -v docker'
            echo 'podman            command -v podman'
            echo 'conmon            command -v conmon'
            echo 'crun              command -v crun'
            echo 'uidmap            command -v newuidmap'
            echo 'iptables          command -v iptables'
            echo 'procps            command -v pgrep'
            echo 'file              command -v file'
            ;;
        kubernetes)
            packages demo
            packages image
            echo 'containerd        command -v containerd && command -v ctr'
            echo 'etcd-server       command -v etcd'
            echo 'containernetworking-plugins test -x /usr/lib/cni/bridge'
            echo 'iproute2          command -v ip'
            ;;
        *) echo "debian-packages.sh: no group $1 (build demo test bench image kubernetes sanitizers)" >&2; exit 2 ;;
    esac
}

# Sees the folders of system tools even where the caller's PATH leaves them out.
PATH=$PATH:/usr/sbin:/sbin
cd "$(dirname "$0")/.."

missing=
for group in "$@"; do
    list=$(packages "$group")
    while read -r package present; do
        case " $missing " in *" $package "*) continue ;; esac
        sh -c "$present" >/dev/null 2>&1 </dev/null || missing="$missing $package"
    done <<LIST
$list
LIST
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "These Debian packages, or what stands for them on this system, are missing:$missing" >&2
    exit 0
fi

# The policy file keeps the packages' services from starting; one that is already there stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
echo "Installing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086  # a list of words
    apt-get install -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 $missing </dev/null
}
log=$(mktemp)
# A new container has no package lists, an old one lists versions that are gone: then fetch them and try again.
if ! install >"$log" 2>&1; then
    { apt-get update -qq && install; } >"$log" 2>&1 || {
        cat "$log" >&2
        rm -f "$log"
        echo "debian-packages.sh: could not install:$missing" >&2
        exit 1
    }
fi
rm -f "$log"
