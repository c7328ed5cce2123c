#!/bin/bash
# A study on four nodes of a Slurm cluster: sbatch docs/clusters/slurm.sh. The same command again resumes it.
#SBATCH --job-name=digitcnn
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
set -euo pipefail

# An environment on a file system that all nodes see, with: pip install '.[ray]'
source "$HOME/digitcnn/.venv/bin/activate"

# The token lies in ~/.ray, which the nodes share as well; once: ray get-auth-token --generate
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Other jobs on the same machines have clusters of their own.
port=$((20000 + SLURM_JOB_ID % 10000))

# This script runs on the first node, which becomes the head and holds the study and its records.
head="$(hostname -I | cut -d' ' -f1):$port"
srun ray symmetric-run --address "$head" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus "$SLURM_CPUS_PER_TASK" \
  -- digitcnn sweep workers=ray "workers.address=$head" "$@"
