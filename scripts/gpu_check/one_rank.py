"""What one of several processes does: python -m scripts.gpu_check.one_rank raise|sync, started as by torchrun."""

import json
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from schemas.errors import DataError
from tests.trainer.chips import make_batch, slim_detector, take
from trainer.learning.objective import Objective
from trainer.runtime.ranks import joined, sum_over_ranks
from trainer.runtime.weights import set_norm_policy

LAYERS = ("backbone.body.layer3.0.conv1.weight", "rpn.conv.weight", "head.layers.0.weight")


def fail() -> None:
    """Exchange something, so that the ranks are connected; then the last one raises while the others wait for it."""
    with joined() as rank:
        sum_over_ranks(torch.ones(1, device=rank.device)).tolist()
        if rank.index == rank.count - 1:
            print(f"raising at {time.time()}", flush=True)
            raise DataError("a chip cannot be read")
        sum_over_ranks(torch.ones(1, device=rank.device)).tolist()


def synchronise() -> None:
    """One step with synchronised norms; the first rank has all chips. Prints gradient and statistics as norms."""
    dist.init_process_group("gloo")
    device = torch.device("cuda", 0)
    # so that no proposal changes its place from one number of ranks to another
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = slim_detector().to(device)
    set_norm_policy(model, "sync", freeze_stem=False, momentum=0.5)
    batch = make_batch([5, 0, 8, 2], seed=1)
    if dist.get_rank():
        batch = take(batch, [])
    objective = DistributedDataParallel(
        Objective(model.train()), device_ids=[0], broadcast_buffers=False, gradient_as_bucket_view=True
    )
    losses = objective(batch.to(device), seed=0, epoch=0, batch_size=4)
    torch.autograd.backward(torch.stack(list(losses.values())).sum() * dist.get_world_size())
    parameters = dict(model.named_parameters())
    result = {name: gradient.norm().item() for name in LAYERS if (gradient := parameters[name].grad) is not None}
    means = [buffer.norm() for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    result["running_means"] = torch.stack(means).sum().item()
    assert len(result) == len(LAYERS) + 1, "a layer has no gradient"
    print(f"result {json.dumps(result)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    {"raise": fail, "sync": synchronise}[sys.argv[1]]()
