#!/usr/bin/env bash
# What only a GPU can do or show, in portions of some minutes.
#
#   bash ci/gpu/run.sh train BUNDLE DATA WORK MINUTES [OPTION …]   trains, and goes on from WORK where it stopped
#   bash ci/gpu/run.sh check [--small]                             what CUDA alone shows, then the benchmarks
#
# BUNDLE: la_unet, pix2pix3d, spade_gan3d, spade_ldm, med_lsdm or seg_guided_diff. DATA: a prepared data set. WORK: a folder for
# checkpoints and weights; give the same one again to go on. OPTION: of the training, such as --max_epochs 200, or
# CONFIGS="['configs/train.json','configs/judge.json']" in the environment for other configs than train.json.
# The training is ended by SIGTERM after MINUTES, which writes a checkpoint. Everything runs without a network.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
PYTHON=$(command -v "$PYTHON")
[ "${PYTHON#/}" != "$PYTHON" ] || PYTHON="$PWD/$PYTHON"
export PYTHONPATH="$PWD/common${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

usage() { sed -n '2,11p' "$0" | cut -c3-; exit 2; }

train() {
    [ $# -ge 4 ] || usage
    local bundle=$1 data work minutes=$4 status=0
    [ -f "bundles/$bundle/configs/train.json" ] || { echo "no bundle $bundle; there are: $(ls bundles | xargs)"; exit 2; }
    data=$(cd "$2" && pwd)
    mkdir -p "$3" && work=$(cd "$3" && pwd)
    shift 4
    local resume=False
    [ -d "$work/checkpoints" ] && resume=True
    cd "bundles/$bundle"
    timeout --preserve-status --signal=TERM --kill-after=60 "$(awk "BEGIN {print $minutes * 60}")" \
        "$PYTHON" -m monai.bundle run training --config_file "${CONFIGS:-configs/train.json}" --dataset_dir "$data" \
        --run_dir "$work" --resume "$resume" "$@" || status=$?
    # 143: told to end, and it has; with anything else the checkpoint may be missing
    case $status in
        0) echo "done: $work" ;;
        143) echo "stopped after $minutes minutes; the same command goes on from $work" ;;
        *) exit "$status" ;;
    esac
    ls -l "$work" "$work/checkpoints"
}

check() {
    "$PYTHON" ci/gpu/checks.py "$@"
    [ "${1:-}" = --small ] && return
    for script in ci/benchmarks/[!_]*.py; do
        echo "== $script"
        "$PYTHON" "$script" || echo "$script failed"
    done
}

case "${1:-}" in
    train) shift && train "$@" ;;
    check) shift && check "$@" ;;
    *) usage ;;
esac
