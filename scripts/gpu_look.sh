#!/bin/bash
# A first look at a GPU machine, in a call of about five minutes. As the command of the tool
# `device`, with carry [".gpu"], after `measure_gpu.py --fetch` and `gpu_kernels.py --tests
# --variants 2,3 --archive .gpu/kernels.tar.xz` (see scripts/measure_gpu.py), and with data:
#   mkdir -p .gpu/data && cp -r ../shared/data/3bpa .gpu/data
#   bash scripts/gpu_look.sh
# What it says comes back, and under $OUT logs and what Triton compiled there. The contract battery,
# operators' tests, peers and a training run side by side, then times alone on the GPU.
set -u
begun=$(date +%s)
logs=/tmp/look
mkdir -p $logs
say() {
    tar czf "$OUT/logs.tgz" -C /tmp look
    echo "## $(($(date +%s) - begun)) s: $*"
}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
python3 - <<'PYTHON' >/tmp/environment || exit 1
import os, sys
from pathlib import Path
sys.path.insert(0, "scripts")
import measure_gpu as m
m.unpack(Path(".gpu/packages.tar.xz"), Path("/tmp/packages"))
m.unpack_kernels(Path(".gpu/kernels.tar.xz"), Path("/tmp/kernels"))
print(f"export PYTHONPATH={os.environ['PYTHONPATH']} TRITON_CACHE_DIR=/tmp/kernels")
PYTHON
. /tmp/environment
export PYTHONUNBUFFERED=1
kernels() { find /tmp/kernels -name '*.cubin' | wc -l; }
say "unpacked, $(kernels) kernels"
timeout 60 python3 scripts/gpu_look.py times 0=none
say "first potential, $(kernels) kernels: as many as before if they were found"
no_cache="-p no:cacheprovider"
export CLEBSCH_TUNE=0 # the GPU is shared for a while
timeout 95 python3 -m pytest tests/contract -n 9 --device cuda $no_cache >$logs/contract.log 2>&1 &
timeout 95 python3 -m pytest tests/kernels/test_triton.py tests/kernels/test_triton_operators.py \
    tests/kernels/test_triton_rows.py -n 3 $no_cache >$logs/operators.log 2>&1 &
PEERS=/tmp/packages/environments timeout 95 python3 scripts/gpu_look.py peers 0 1 2 \
    >$logs/peers.log 2>&1 &
timeout 95 python3 -m clebsch reproduce 3bpa --data .gpu/data --models mace_3bpa --seeds 1 \
    device=cuda training.max_epochs=2000 training.eval_every=10 model.radial.n_basis=5 \
    --budget 35s --runs /tmp/runs --results $logs/results >$logs/training.log 2>&1 &
wait
unset CLEBSCH_TUNE
say "side by side, $(kernels) kernels"
for log in operators contract peers training; do
    echo "# $log"
    tail -n 25 $logs/$log.log | cut -c1-250
done
find /tmp/runs -name metrics.jsonl -exec tail -n 2 {} \;
timeout 120 python3 scripts/gpu_look.py times 0=forces,tabulated,tf32 1=step,forces \
    2=forces,fused,tabulated 3=forces,blocks,tabulated 4=forces,stored,tf32 >$logs/times.log 2>&1
grep -v '^    ' $logs/times.log
say "times"
timeout 60 python3 scripts/gpu_look.py variants 2 3 >$logs/variants.log 2>&1
say "variants"
tail -n 3 $logs/variants.log
find /tmp/kernels -type f ! -name '*.cubin' ! -name '*.json' -delete
tar cf - -C /tmp/kernels . | xz -T8 -3 >"$OUT/kernels.tar.xz"
say "done"
