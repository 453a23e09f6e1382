#!/bin/bash
# sanitize.sh asan|tsan COMMAND...: runs a command in build/asan or build/tsan, a copy of the tree whose extensions are
# built with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer. Fails if the command does, or if
# any process that it started made a report; daemons are such processes, and their standard error is often not shown.
# In the command, `python` and `pytest` are those of the virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

kind=$1
shift
common=log_path=$root/build/$kind/reports/report:exitcode=66
case $kind in
    asan)
        # Without nonnull-attribute: memcpy of nothing from or to NULL does nothing, as C2Y says, and empty texts are NULL.
        flags='-fsanitize=address,undefined -fno-sanitize=nonnull-attribute -fno-omit-frame-pointer'
        runtimes='libasan.so libubsan.so'
        # CPython frees little at its end: a leak report would be all noise. tests/load/test_leaks.py counts instead.
        export ASAN_OPTIONS=$common:detect_leaks=0:verify_asan_link_order=0
        # UndefinedBehaviorSanitizer beside AddressSanitizer writes to standard error whatever log_path says: so that
        # no report goes by unseen, the first one ends the process, and with it the test.
        export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
        ;;
    tsan)
        flags='-fsanitize=thread -fno-omit-frame-pointer'
        runtimes='libtsan.so'
        # CPython and gRPC are not instrumented, so what they synchronise by is unseen: only calls from our own code count.
        # There are no suppressions.
        export TSAN_OPTIONS=$common:ignore_noninstrumented_modules=1:history_size=7:second_deadlock_stack=1
        ;;
    *)
        echo "sanitize.sh: asan or tsan, not $kind" >&2
        exit 2
        ;;
esac

# What was compiled with other flags is not compiled again by itself.
[ "$(cat "build/$kind/flags" 2>/dev/null)" = "$flags" ] || rm -rf "build/$kind"
mkdir -p "build/$kind"
echo "$flags" >"build/$kind/flags"
# Modules that were removed since the last time must not stay. What is compiled does: it is built again where it must be.
find "build/$kind" -name '*.py' -delete
tar --exclude='*.so' --exclude=__pycache__ -cf - argusd demo packaging proto tests setup.py pyproject.toml README.md LICENSE |
    tar -xf - -C "build/$kind"
cd "build/$kind"
echo "Building the extensions with $flags into build/$kind"
export CFLAGS=$flags LDFLAGS=$flags
"$root/.venv/bin/python" setup.py --quiet build_ext --inplace
"$root/.venv/bin/cythonize" --quiet --inplace -3 tests/fuzz/native.pyx
unset CFLAGS LDFLAGS

preload=
for runtime in $runtimes; do
    preload=$preload:$(readlink -f "$(gcc -print-file-name=$runtime)")
done
rm -rf reports
mkdir -m 1777 reports # daemons that give up root write there as well
status=0
PATH=$root/.venv/bin:$PATH LD_PRELOAD=${preload#:} PYTHONMALLOC=malloc "$@" || status=$?
if [ -n "$(ls reports)" ]; then
    cat reports/*
    echo "sanitize.sh: $(ls reports | wc -l) processes made a report; they are in build/$kind/reports" >&2
    exit 1
fi
exit $status
