#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds, tests and measures on a machine with a GPU and without network: benchmarks/gpu.sh OUTDIR
#
# Missing Python packages (scikit-build-core, pybind11, pytest, pytest-timeout, pytest-benchmark, py-cpuinfo, …) are
# taken as wheels from .whl/ (README.md lists them). Every step runs even after another has failed; the exit
# status is 1 if any failed.
# Written to OUTDIR: status.txt (step, exit status, seconds), log.txt, gpu-{cuda,triton}.{json,md}, gpu.png.
#
# Environment: PYTHON (python3), SITE (where packages are installed, a temporary folder), DEADLINE (570: seconds
# after which no further step starts), BENCH_ARGS (more arguments of pytest benchmarks), DRY_RUN=1 (print the steps).
set -euo pipefail

if [[ $# -ne 1 ]]; then
  echo "usage: benchmarks/gpu.sh OUTDIR" >&2
  exit 2
fi
PYTHON=${PYTHON:-python3}
DEADLINE=${DEADLINE:-570}
DRY_RUN=${DRY_RUN:-0}
read -r -a BENCH_ARGS <<< "${BENCH_ARGS:-}"
if [[ $DRY_RUN == 1 ]]; then
  OUTDIR=$1
  SITE=${SITE:-/tmp/innerloop-site}
else
  mkdir -p "$1"
  OUTDIR=$(cd "$1" && pwd)
  SITE=${SITE:-$(mktemp -d)}
  : > "$OUTDIR/status.txt"
  : > "$OUTDIR/log.txt"
fi
cd "$(dirname "$0")/.."
export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
failed=0

record() { # step, status, seconds
  printf '%-12s %-28s %s s\n' "$1" "$2" "$3" | tee -a "$OUTDIR/status.txt"
}

# step NAME SECONDS COMMAND…: runs it within SECONDS and what is left of DEADLINE; records how it ended.
step() {
  local name=$1 limit=$2 start=$SECONDS left=$((DEADLINE - SECONDS)) status=0
  shift 2
  if [[ $DRY_RUN == 1 ]]; then
    printf '%-12s (%s s) %s\n' "$name" "$limit" "$*"
    return 0
  fi
  if ((left <= 0)); then
    failed=1
    record "$name" "failed: no time left" 0
    return 0
  fi
  printf '\n==== %s: %s\n' "$name" "$*" | tee -a "$OUTDIR/log.txt"
  # Inside `||` so that set -e lets the next step run; pipefail makes the status that of the command, not of tee.
  timeout --kill-after=10 "$((limit < left ? limit : left))" "$@" 2>&1 | tee -a "$OUTDIR/log.txt" || status=$?
  case $status in
    0) record "$name" ok $((SECONDS - start)) ;;
    124 | 137)
      failed=1
      record "$name" "failed: out of time ($status)" $((SECONDS - start))
      ;;
    *)
      failed=1
      record "$name" "failed: exit status $status" $((SECONDS - start))
      ;;
  esac
}

# skip NAME WHY: a step that does not apply, which is no failure.
skip() {
  if [[ $DRY_RUN == 1 ]]; then
    printf '%-12s skipped: %s\n' "$1" "$2"
  else
    record "$1" "skipped: $2" 0
  fi
}

pip_install=("$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$SITE")

shopt -s nullglob
wheels=(.whl/*.whl)
shopt -u nullglob
if ((${#wheels[@]})); then
  step wheels 90 "${pip_install[@]}" "${wheels[@]}"
else
  skip wheels "no .whl folder"
fi
step build 300 "${pip_install[@]}" --no-build-isolation -C cmake.define.IL_CUDA=ON .
step doctor 60 "$PYTHON" -m innerloop doctor

# Every op test with its tensors on the GPU, then those of each kernel that INNERLOOP_GPU chooses.
step tests 180 "$PYTHON" -m pytest -p no:cacheprovider -q --device cuda tests/ops
for kernels in cuda triton; do
  step "$kernels" 180 env INNERLOOP_GPU=$kernels "$PYTHON" -m pytest -p no:cacheprovider -q --device cuda tests/ops tests/nn \
    -k "relational_spmm or nbfnet or graph"
done
if [[ $DRY_RUN == 1 ]] || "$PYTHON" -c 'import cupy' > /dev/null 2>&1; then
  # The same device code, compiled at first use.
  step nvrtc 120 env INNERLOOP_GPU=cuda INNERLOOP_NVRTC=1 "$PYTHON" -m pytest -p no:cacheprovider -q --device cuda \
    tests/ops/test_relational_spmm.py tests/ops/test_motif_gpu.py
else
  skip nvrtc "no CuPy"
fi

if [[ $DRY_RUN == 1 ]] || { command -v compute-sanitizer > /dev/null \
  && "$PYTHON" -c 'import sys, innerloop; sys.exit(not innerloop.has_cuda_kernels())' > /dev/null 2>&1; }; then
  # Without torch's caching allocator every tensor is an allocation of its own, whose end memcheck knows; no allocation is
  # allowed inside a capture then.
  step sanitizer 180 env INNERLOOP_GPU=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool memcheck --error-exitcode 3 \
    "$PYTHON" -m pytest -p no:cacheprovider -q -m gpu --timeout=0 -k "not cuda_graph and not rmat14 and not memory" tests/ops
  # Barriers around shared memory: the stacks of the matcher, and how blocks share out their work.
  step racecheck 120 env INNERLOOP_GPU=cuda compute-sanitizer --tool racecheck --error-exitcode 3 \
    "$PYTHON" -m pytest -p no:cacheprovider -q -m gpu --timeout=0 -k "rmat10 or test_match or small_scratch" \
    tests/ops/test_motif_gpu.py
else
  skip sanitizer "no compute-sanitizer, or no CUDA kernels"
  skip racecheck "no compute-sanitizer, or no CUDA kernels"
fi

# The ${…+…} form: an empty array is "unbound" for older versions of bash.
for kernels in cuda triton; do
  step "bench-$kernels" 200 env INNERLOOP_GPU=$kernels "$PYTHON" -m pytest -p no:cacheprovider -q -m gpu --benchmark-only \
    --benchmark-json="$OUTDIR/gpu-$kernels.json" ${BENCH_ARGS[@]+"${BENCH_ARGS[@]}"} benchmarks
  step "table-$kernels" 60 "$PYTHON" -X utf8 benchmarks/plot.py "$OUTDIR/gpu-$kernels.json" --markdown "$OUTDIR/gpu-$kernels.md"
done
if [[ $DRY_RUN == 1 ]] || "$PYTHON" -c 'import matplotlib' > /dev/null 2>&1; then
  step chart 60 "$PYTHON" -X utf8 benchmarks/plot.py "$OUTDIR/gpu-cuda.json" --markdown /dev/null --png "$OUTDIR/gpu.png"
else
  skip chart "no matplotlib"
fi
exit "$failed"
