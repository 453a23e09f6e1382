#!/bin/sh
# binary.sh: makes dist/argusd, one file that needs nothing of the host but /proc, /dev and an executable /tmp. Under the
# name of the link dist/janusd it serves guards.
set -eu
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
export PATH

# The same sources give the same bytes.
export PYTHONHASHSEED=0
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH

echo "Making dist/argusd"
mkdir -p build dist
pyinstaller --log-level WARN --noconfirm --distpath build/onefile --workpath build/pyinstaller packaging/argusd.spec
python packaging/one_file.py build/onefile/argusd dist/argusd.new
chmod 755 dist/argusd.new
mv dist/argusd.new dist/argusd
ln -sf argusd dist/janusd
du -h --apparent-size dist/argusd
