"""Starting the processes of a run: on GPUs, on CPUs, or inside those that torchrun started."""

import logging
import os
import re
import sys
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from .data_loader import check_shares

__all__ = ["LaunchError", "check_batch", "launch", "started_by_torchrun"]

logger = logging.getLogger(__name__)

TIMEOUT = timedelta(minutes=30)


class LaunchError(ValueError):
    """The processes cannot be started as the command line asks."""


def started_by_torchrun() -> bool:
    """Whether this process is one of a group that torchrun (or its like) made."""
    return all(key in os.environ for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))


def launch(
    main: Callable,
    num_gpus: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
) -> None:
    """Run ``main(*args)`` in every process of the run.

    * under torchrun: in this process, as a member of torchrun's group; the other arguments are
      ignored.
    * with GPUs: Detectron2's launch, one process per GPU.
    * without GPUs: ``num_gpus`` of 0 or 1 runs here, more start as many processes that talk
      through gloo and share the cores.

    A process that ends by ``sys.exit(code)`` ends the run with this code.

    Raises:
        LaunchError: more GPUs are asked for than there are, or the address is none.
    """
    if started_by_torchrun():
        _join_torchrun(main, args)
        return
    if num_gpus < 0:
        raise LaunchError(f"--num-gpus is {num_gpus}; it must be 0 (the CPU) or more.")
    if not 0 <= machine_rank < num_machines:
        raise LaunchError(
            f"--machine-rank is {machine_rank} of --num-machines {num_machines}: machines are "
            "counted from 0."
        )
    _check_url(dist_url, num_machines)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and num_gpus > gpus:
        raise LaunchError(f"--num-gpus is {num_gpus}, but this machine has {gpus}.")
    per_machine = max(num_gpus, 1)
    if per_machine * num_machines == 1:
        main(*args)
        return
    try:
        if gpus and num_gpus:
            detectron2_launch(main, num_gpus, num_machines, machine_rank, dist_url, args)
        else:
            _launch_on_cpu(main, per_machine, num_machines, machine_rank, dist_url, args)
    except mp.ProcessExitedException as error:
        sys.exit(error.exit_code)


def _check_url(dist_url: str | None, num_machines: int) -> None:
    if dist_url is None or dist_url == "auto":
        if num_machines > 1:
            raise LaunchError(
                "--dist-url must be given in runs over several machines: tcp://HOST:PORT of the "
                "first one, the same on all."
            )
        return
    if not re.fullmatch(r"tcp://[^:/]+:\d+|tcp://\[[^\]]+\]:\d+|file:///.+|env://", dist_url):
        raise LaunchError(
            f"--dist-url is '{dist_url}'; it must be 'auto', tcp://HOST:PORT or file:///PATH."
        )


def check_batch(cfg: CfgNode, num_gpus: int, num_machines: int) -> None:
    """
    Raises:
        ValueError: the processes of the run cannot share the batch equally.
    """
    processes = max(num_gpus, 1) * num_machines
    if started_by_torchrun():
        processes = int(os.environ["WORLD_SIZE"])
    # with a reference the batch is scaled with the number of processes
    check_shares(cfg, cfg.SOLVER.REFERENCE_WORLD_SIZE or processes)


def _join_torchrun(main: Callable, args: tuple) -> None:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), _local_world_size()
    gpu = torch.cuda.is_available()
    if gpu:
        if local_rank >= torch.cuda.device_count():
            raise LaunchError(
                f"torchrun started {local_size} processes on a machine with "
                f"{torch.cuda.device_count()} GPUs: use --nproc_per_node "
                f"{torch.cuda.device_count()}."
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if gpu else "gloo", init_method="env://", timeout=TIMEOUT)
    _run_in_group(main, args, local_size)


def _local_world_size() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))


def _launch_on_cpu(main, per_machine, num_machines, machine_rank, dist_url, args) -> None:
    if dist_url is None or dist_url == "auto":
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    # "spawn", since a fork copies the locks of OpenMP threads that do not exist in the child
    mp.start_processes(
        _cpu_worker,
        args=(main, args, per_machine, num_machines, machine_rank, dist_url),
        nprocs=per_machine,
        start_method="spawn",
    )


def _cpu_worker(local_rank, main, args, per_machine, num_machines, machine_rank, dist_url) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // per_machine))
    dist.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=per_machine * num_machines,
        rank=machine_rank * per_machine + local_rank,
        timeout=TIMEOUT,
    )
    _run_in_group(main, args, per_machine)


def _run_in_group(main: Callable, args: tuple, local_size: int) -> None:
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main(*args)
    comm.synchronize()
    dist.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
