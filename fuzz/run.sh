#!/usr/bin/env bash
# Fuzzes one target on the stable toolchain: fuzz/run.sh TARGET SECONDS [INPUT...]
# With inputs it runs just these: how a failing one is repeated.
# Coverage comes from LLVM's own pass, so no nightly is needed; an explicit target keeps build scripts free of it.
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?a target: see fuzz_targets/}
seconds=${2:-60}
shift; [ $# -eq 0 ] || shift
features=()
case $target in wal_*) features=(--no-default-features) ;; esac
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
run=(cargo run --release --locked --quiet "${features[@]}"
    --target "$(rustc -vV | sed -n 's/^host: //p')" --bin "$target" --)
if [ $# -gt 0 ]; then
    exec "${run[@]}" "$@"
fi
mkdir -p "corpus/$target" artifacts
if ! "${run[@]}" -max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=20 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target-" "corpus/$target" >"artifacts/$target.log" 2>&1; then
    tail -40 "artifacts/$target.log"
    echo "repeat: fuzz/run.sh $target 0 $(ls -t artifacts/"$target"-* | head -1)"
    exit 1
fi
echo "$target: $(grep -E 'number_of_executed_units' "artifacts/$target.log" | grep -oE '[0-9]+$') inputs in $seconds s, no failure"
