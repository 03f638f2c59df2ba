#!/usr/bin/env bash
# Writes the examples again, from each infrastructure file with a recipe and overrides.
set -euo pipefail
cd "$(dirname "$0")"
data="data.train=/runs/prompts/train.txt data.heldout=/runs/prompts/test.txt"

tempflow deploy sd35_pickscore_1gpu $data name=one-gpu --infra one_gpu.infra.yaml > one_gpu.yaml
tempflow deploy sd35_pickscore $data name=eight-gpus --infra eight_gpus.infra.yaml > eight_gpus.yaml
tempflow deploy flux_hpsv3 $data name=four-nodes placement=split rollout.workers=16 rollout.max_workers=24 learner.ranks=8 \
  serve.gateways=4 checkpoint.folder=s3://tempflow/checkpoints scorers.0.num_gpus=0.75 'scorers.0.replicas={min: 2, max: 16}' \
  --infra four_nodes.infra.yaml > four_nodes.yaml
