#!/usr/bin/env bash
# All steps from slides with outlines to evaluated maps, on synthetic slides: 20 slides of 12 patients.
#
#   bash examples/own_slides.sh                                     writes into own-slides/; takes some minutes
#   bash examples/own_slides.sh --num-slides 8 --num-patients 6     options of wsi-idc synth
#
# For slides of your own leave out `wsi-idc synth`, and give your manifest and your outlines to `wsi-idc prepare`:
# docs/howto/own-slides.md. After a stop, the same line resumes.
set -euo pipefail
mkdir -p own-slides
cd own-slides
if [[ ! -e scans ]]; then
    wsi-idc synth scans --num-slides 20 "$@"
fi
wsi-idc prepare --slides scans/slides.csv --annotations scans/annotations --out data/scans.h5
wsi-idc train --data data/scans.h5 --epochs 10
wsi-idc eval --data data/scans.h5
wsi-idc map --all --data data/scans.h5
wsi-idc report
wsi-idc export
