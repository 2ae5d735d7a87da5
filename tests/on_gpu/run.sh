#!/bin/bash
# On a machine with an NVIDIA GPU and JAX for CUDA: the kernel's numbers, times, reads out of bounds and races.
folder=$(dirname "$0")
export PYTHONPATH="$folder/../..:$PYTHONPATH" XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.max.sm --format=csv,noheader
echo "== numbers"
timeout 150 "$python" "$folder/check.py" || failed=1
echo "== times"
timeout 170 "$python" "$folder/times.py" || failed=1
for tool in memcheck racecheck; do
  command -v compute-sanitizer > /dev/null || continue
  echo "== $tool"
  timeout 60 compute-sanitizer --tool $tool --error-exitcode 1 "$python" "$folder/check.py" small || failed=1
done
exit ${failed:-0}
