#!/usr/bin/env bash
# Trains the cells of the first table in the shape of GCPO's Table 1 with SmolLM2 on FairytaleQA, seed by seed:
#   smollm2_runs.sh DATA/fairytaleqa MODELS/nli-minilm OUT [SEEDS]
# Every run is an ordinary run directory, OUT/runs/CELL/seed-N; a finished one is left alone, an interrupted one resumed.
set -u
data=$1 nli=$2 out=$3 seeds=${4:-"0 1 2"}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
cells="grpo gcpo_bot gcpo_cd seed_grpo grpo_se empo grpo_kle grpo_care grpo_care,form=agreement"
for seed in $seeds; do
  for cell in $cells; do
    run="$out/runs/$cell/seed-$seed" method=${cell%%,*} extra=()
    [ "$cell" = "$method" ] || extra=(--method-options "${cell#*,}")
    [ -e "$run/report.html" ] && continue
    if [ -e "$run/config.yaml" ]; then
      python -m calibrant train --resume "$run"
    else
      python -m calibrant train --model smollm2 --task reading --data "$data" --max-prompt-length 512 \
        --entailment-model "$nli" --method "$method" "${extra[@]}" --seed "$seed" --steps 20 --loss-type dapo \
        --beta 0.002 --learning-rate 2e-5 --no-evaluation --save-every 10 --out "$run"
    fi && rm -rf "$run/checkpoints"
  done
done
