#!/usr/bin/env bash
# From CT scans, by TotalSegmentator's label maps (117 classes), to a trained med_lsdm and synthetic volumes.
#
#   SCANS=folder bash examples/totalsegmentator_ct.sh [OUTPUT]
#
# SCANS holds one folder per scan with ct.nii.gz, called by patient: P001_1/ct.nii.gz, P001_2/ct.nii.gz, P002_1/… .
# TotalSegmentator is installed apart (pip install TotalSegmentator) and loads its weights on its first run. Scans whose
# map is there already (totalseg.nii.gz) are left as they are. EXTRA is handed on to both trainings, such as
# EXTRA="--max_epochs 2" for a first try, TINY=1 takes networks of a few thousand parameters.
set -euo pipefail
SCANS=$(realpath "${SCANS:?the folder of the scans}")
OUTPUT=$(realpath -m "${1:-totalsegmentator_ct}")
BUNDLE=$(realpath "$(dirname "$0")/../bundles/med_lsdm")
EXTRA=${EXTRA:-}

# 1. label maps: one file of 117 classes per scan
for scan in "$SCANS"/*/ct.nii.gz; do
    map="$(dirname "$scan")/totalseg.nii.gz"
    [ -f "$map" ] || TotalSegmentator -i "$scan" -o "$map" --ml
done

# 2. what the networks are trained on: 1.5 × 1.5 × 3 mm, -1000 to 1000 HU, divided by patient
semsynth prepare-maps --input "$SCANS/*/ct.nii.gz" --label "$SCANS/*/totalseg.nii.gz" --classes totalsegmentator \
    --output "$OUTPUT/data" --modality CT --window -1000,1000 --spacing 1.5,1.5,3 --dtype uint8 \
    --fractions 0.9,0.1 --patient-regex '^([^_]+)_'

# 3. the VQ-GAN, then the denoiser in its latents; both go on where they were when they are started again
cd "$BUNDLE"
configs() { # of a base and its overlays, as MONAI takes them
    local names=("$@") text=""
    for name in "${names[@]}"; do text="$text,'configs/$name.json'"; done
    echo "[${text#,}]"
}
resume() { [ -d "$1/checkpoints" ] && echo True || echo False; }
FIRST=(train_vqgan totalsegmentator_vqgan ${TINY:+tiny_vqgan})
SECOND=(train totalsegmentator ${TINY:+tiny})
INFERENCE=(inference totalsegmentator ${TINY:+tiny})
# shellcheck disable=SC2086
python -m monai.bundle run training --config_file "$(configs "${FIRST[@]}")" --dataset_dir "$OUTPUT/data" \
    --run_dir "$OUTPUT/vqgan" --resume "$(resume "$OUTPUT/vqgan")" $EXTRA
# shellcheck disable=SC2086
python -m monai.bundle run training --config_file "$(configs "${SECOND[@]}")" --dataset_dir "$OUTPUT/data" \
    --run_dir "$OUTPUT/denoiser" --vqgan_weights "$OUTPUT/vqgan/model_final.pt" --resume "$(resume "$OUTPUT/denoiser")" $EXTRA

# 4. a volume of every unseen map, in Hounsfield units
python -m monai.bundle run --config_file "$(configs "${INFERENCE[@]}")" --dataset_dir "$OUTPUT/data" \
    --weights "$OUTPUT/denoiser/model_final.pt" --output_dir "$OUTPUT/volumes"
echo "volumes: $OUTPUT/volumes"
