#!/usr/bin/env bash
# Fuzzes one target on the stable toolchain: fuzz/run.sh TARGET SECONDS
# Coverage comes from LLVM's own pass, so no nightly is needed; an explicit target keeps build scripts free of it.
set -euo pipefail
cd "$(dirname "$0")"
target=${1:?a target: see fuzz_targets/}
seconds=${2:-60}
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1"
mkdir -p "corpus/$target"
cargo run --release --target "$(rustc -vV | sed -n 's/^host: //p')" --bin "$target" -- \
    -max_total_time="$seconds" "corpus/$target"
