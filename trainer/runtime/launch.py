"""How this process was started: as one of several that work together, alone, or by mistake as one of several alone."""

from collections.abc import Mapping

from schemas.errors import UsageError

NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets beside WORLD_SIZE."""


def check_launch(environment: Mapping[str, str]) -> None:
    """Refuse to start as one of several processes that do not know of each other.

    Args:
        environment: variables of this process.

    Raises:
        UsageError: torchrun's variables are there only in part, or Slurm has started several tasks without torchrun,
            each of which would train by itself.
    """
    if "WORLD_SIZE" in environment:
        missing = [name for name in NEEDED if name not in environment]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} not set: start all processes by "
                "torchrun (make GPUS=N, or torchrun --standalone --nproc-per-node N --no-python sniper ...), which "
                "sets them, or unset WORLD_SIZE to run a single process"
            )
    elif "RANK" not in environment and (tasks := environment.get("SLURM_NTASKS", "1")).isdecimal() and int(tasks) > 1:
        raise UsageError(
            f"Slurm runs {tasks} tasks without torchrun (SLURM_NTASKS is {tasks}, RANK is not set), and each would "
            "work alone: start one torchrun per machine, which starts one process per GPU:\n"
            "  srun --ntasks-per-node=1 torchrun --nnodes $SLURM_NNODES --nproc-per-node GPUS "
            "--rdzv-backend c10d --rdzv-id $SLURM_JOB_ID --rdzv-endpoint FIRST_HOST:29500 --no-python sniper ...\n"
            "To run a single process, ask for --ntasks=1, or unset SLURM_NTASKS"
        )
