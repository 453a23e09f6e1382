#!/bin/bash
# image.sh: makes build/argusd-image.tar and build/janusd-image.tar, the images of Dockerfile.scratch as 'docker load'
# takes them, with buildah: no daemon, no container isolation but chroot, its storage below build/.
# Environment: BUILDER   builder image; by default that of Dockerfile.scratch, or, where no registry answers within
#                        20 s, a Debian image made here with debootstrap
#              REGISTRY  what stands before /argusd:VERSION and /janusd:VERSION, the names of the images (localhost)
#              NO_CACHE  anything: make every layer anew. The same commit gives the same digests
# image.sh clean: removes the storage.
set -euo pipefail
cd "$(dirname "$0")/.."

WORK=$PWD/build/image
LOCAL_BUILDER=localhost/argusd-builder:bookworm

DRIVER=${STORAGE_DRIVER:-overlay}

b() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver "$DRIVER" "$@"; }

clean() {
    [ -d "$WORK" ] || return 0
    # Mounts of an interrupted build would make rm walk into them.
    awk -v work="$WORK/" 'index($5, work) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n 1 umount -l
    rm -rf "$WORK"
}

# The host's mirrors, certificates and proxies must hold inside the builder too, whatever they are.
# pip: what 'pip config list' says, environment included, as one file; the files it names are mounted where they were.
pip_configuration() {
    .venv/bin/python - "$WORK/pip.conf" <<'PY'
import ast
import subprocess
import sys
from pathlib import Path

listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
sections: dict[str, dict[str, str]] = {}
# The environment comes last, so that it wins, as it does in pip.
for line in sorted(listing.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
    name, _, value = line.partition("=")
    section, _, key = name.rpartition(".")
    value = ast.literal_eval(value)
    if key == "config-file":
        continue
    section = "global" if section == ":env:" else section
    sections.setdefault(section, {})[key] = value
    for word in value.split():
        if word.startswith("/") and Path(word).exists():
            print(f"--volume={word}:{word}:ro")
with Path(sys.argv[1]).open("w") as file:
    for section, entries in sections.items():
        print(f"[{section}]", *(f"{key} = {' '.join(value.split())}" for key, value in entries.items()), sep="\n", file=file)
PY
    echo "--volume=$WORK/pip.conf:/etc/pip.conf:ro"
}

proxies() {
    local name
    for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY GOPROXY GOSUMDB; do
        if [ -n "${!name:-}" ]; then echo "--build-arg=$name=${!name}"; fi
    done
}

pull() { # succeeds when the image is there; gives up when no registry has answered within 20 s
    b inspect --type image "$1" >/dev/null 2>&1 && return
    buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver "$DRIVER" pull "$1" >"$WORK/pull.log" 2>&1 &
    local pid=$! tenths
    for ((tenths = 0; tenths < 200; tenths++)); do
        if ! kill -0 $pid 2>/dev/null || grep -q 'Getting image source' "$WORK/pull.log"; then break; fi
        sleep 0.1
    done
    if ((tenths == 200)); then kill $pid; fi
    wait $pid
}

debian_mirror() { # where this machine's apt fetches bookworm, or else Debian's own address
    apt-get indextargets --format '$(SITE)' 'Codename: bookworm' 'Identifier: Packages' 2>/dev/null | head -n 1 | grep . ||
        echo http://deb.debian.org/debian
}

make_local_builder() {
    local container root mirror packages
    if b inspect --type image $LOCAL_BUILDER >/dev/null 2>&1; then return 0; fi
    mirror=$(debian_mirror)
    echo "No registry can be reached: making a builder image with debootstrap"
    http_proxy=${http_proxy:-$(eval "$(apt-config shell proxy Acquire::http::Proxy)"; echo "${proxy:-}")}
    export http_proxy
    [ -n "$http_proxy" ] || unset http_proxy
    container=$(b from scratch)
    root=$(b mount "$container")
    # python3-distutils and python3 are named because debootstrap does not follow "python3:any".
    packages=python3,python3-distutils,python3.11-venv,python3.11-dev,gcc,libc6-dev,binutils,make,ca-certificates
    debootstrap --variant=minbase "--include=$packages" bookworm "$root" "$mirror" >"$WORK/debootstrap.log" 2>&1 ||
        { tail -n 20 "$WORK/debootstrap.log" >&2; b rm "$container" >/dev/null; return 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    b umount "$container" >/dev/null
    b commit --quiet --rm "$container" $LOCAL_BUILDER >/dev/null
}

build() {
    local builder version revision epoch name image archive
    local -a arguments
    version=$(sed -n 's/^__version__.*= "\(.*\)"/\1/p' argusd/__init__.py)
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
    mkdir -p "$WORK"
    builder=${BUILDER:-$(sed -n 's/^ARG BUILDER=//p' Dockerfile.scratch)}
    if [ -z "${BUILDER:-}" ] && ! pull "$builder"; then
        make_local_builder
        builder=$LOCAL_BUILDER
    fi
    mapfile -t arguments < <(pip_configuration; proxies)
    for name in janusd argusd; do  # argusd last: its file is what make looks at
        echo "Building the image of $name from $builder"
        image=${REGISTRY:-localhost}/$name:$version archive=$PWD/build/$name-image.tar
        # Docker's format notes the name of the build's container, the history when a layer was made: both vary.
        b build --quiet --isolation chroot --layers ${NO_CACHE:+--no-cache} --format oci --omit-history "${arguments[@]}" --build-arg "BUILDER=$builder" \
            --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
            --build-arg "SOURCE_DATE_EPOCH=$epoch" --timestamp "$epoch" \
            --file Dockerfile.scratch --target "$name" --tag "$image" . >"$WORK/build.log" 2>&1 ||
            { cat "$WORK/build.log" >&2; return 1; }
        rm -f "$archive"
        b push --quiet "$image" "docker-archive:$archive.new:$image"
        mv "$archive.new" "$archive"
        du -h --apparent-size "$archive"
    done
}

case ${1:-build} in
    build) build ;;
    clean) clean ;;
    *) echo "usage: image.sh [build|clean]" >&2; exit 2 ;;
esac
