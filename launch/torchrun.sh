#!/usr/bin/env bash
# Train on one host or several:
#
#   launch/torchrun.sh CONFIG [section.key=value ...]                                       one host, all its GPUs
#   NNODES=2 RDZV_ENDPOINT=host-0:29400 launch/torchrun.sh CONFIG [section.key=value ...]   the same line on each host
#
# NNODES          hosts (1)
# NPROC_PER_NODE  ranks a host (its GPUs; 2 without any)
# RDZV_ENDPOINT   HOST:PORT where the hosts meet: one of them, which must outlive the others; needed with NNODES > 1
# RDZV_ID         the same name on all hosts of one launch, another one for each launch that uses the endpoint (srpo)
# LOCAL_ADDR      this host's address as the others reach it (what its own name resolves to)
# MAX_RESTARTS    times that torchrun starts the ranks again from the last checkpoint after a fault (3)
# PYTHON          the interpreter (python3)
#
# SIGTERM: the run saves after the step in flight and ends with 0; a second one ends it at once. docs/cluster.md has all
# of this, what each failure looks like, and the NCCL settings below.
set -euo pipefail

gpus=$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)
nnodes=${NNODES:-1}
if [ "$nnodes" -gt 1 ]; then
    : "${RDZV_ENDPOINT:?HOST:PORT where the hosts meet}"
fi

# -- NCCL: only what has a reason here. What a machine needs beyond it is measured, not copied; see docs/cluster.md. ----
#
# Which interfaces NCCL and gloo connect through. They choose by name and can choose a management network or a container
# bridge: then hosts do not reach each other, or do at 1 Gb/s. Export them where NCCL_DEBUG=INFO shows the wrong one.
#   export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0
# Which InfiniBand or RoCE ports carry data, where some are for storage.
#   export NCCL_IB_HCA=mlx5_0,mlx5_1
# What NCCL has chosen and why, once, when a transfer is slower than `nccl-tests` says it can be.
#   export NCCL_DEBUG=INFO NCCL_DEBUG_SUBSYS=INIT,NET
#
# The last collectives of each rank in a ring in memory, written to $TORCH_FR_DUMP_TEMP_FILE<rank> when one hangs: which
# rank did not come to which. It costs a few microseconds a collective.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
# Without it torchrun keeps one store for all restarts: a host that comes back waits for an address that is not told
# again, and restarted ranks find the keys of those before them (torch 2.13, pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

arguments=(
    --nnodes "$nnodes"
    --nproc-per-node "${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 2))}"
    --max-restarts "${MAX_RESTARTS:-3}"
    --rdzv-backend c10d
    --rdzv-endpoint "${RDZV_ENDPOINT:=localhost:0}"
    --rdzv-id "${RDZV_ID:-srpo}"
    # SIGTERM is between the scheduler and the ranks: torchrun would give them 30 seconds, and fail afterwards.
    --signals-to-handle SIGINT,SIGHUP,SIGQUIT
)
if [ -n "${LOCAL_ADDR:-}" ]; then
    arguments+=(--local-addr "$LOCAL_ADDR")
    # torchrun compares the endpoint with what this host's own name resolves to, which can be another address.
    [ "$LOCAL_ADDR" != "${RDZV_ENDPOINT%:*}" ] || arguments+=(--rdzv-conf is_host=1)
fi

stopping=0
trap 'stopping=$((stopping + 1))' TERM

(trap '' TERM && exec "${PYTHON:-python3}" -m torch.distributed.run "${arguments[@]}" -m srpo train "$@") &
torchrun=$!
trap 'kill -INT "$torchrun"' INT

told=" "
pass_on() {  # to each rank once; also to those that a restart has just begun
    local rank
    for rank in $(pgrep -P "$torchrun"); do
        case $told in *" $rank "*) continue ;; esac
        kill -TERM "$rank" 2>/dev/null || true
        told+="$rank "
    done
}

while kill -0 "$torchrun" 2>/dev/null; do
    case $stopping in
    0) wait "$torchrun" || true ;;  # until it ends, or a signal comes
    1) pass_on ;;
    *) pkill -TERM -P "$torchrun" || true
       kill -INT "$torchrun" || true ;;
    esac
    [ "$stopping" -eq 0 ] || { sleep 1 & wait "$!" || true; }
done
wait "$torchrun"
