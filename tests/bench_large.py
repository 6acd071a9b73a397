"""What depends on the network and on the size of its input: backward rules, and perturbation, at 224 x 224."""

from functools import partial

import pandas as pd
import torch
import torchvision

from bench_floor import Floor, Spent, clocked, in_turn, pictures
from bench_peers import maps_of
from harness import METHODS, NotApplicableError

NETWORKS = ("resnet18", "mobilenet_v2")
BATCH, CHUNK = 4, 4
RULED = [name for name, entry in METHODS.items() if entry.family == "backward rule"] + ["full_grad"]
MASKS = {
    "occlusion": {"window": 32, "stride": 16},
    "rise": {"samples": 256},
    "lime": {"samples": 256},
    "kernel_shap": {"samples": 256},
    "score_cam": {},
}


def _network(name, device):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval().to(device)


def rules_table(floor, model, x, quick):
    """Backward rules, times a plain forward and backward pass of the same batch, which nobody can be faster than."""
    table, left_out = {}, {}
    for network in NETWORKS[: 1 if quick else None]:
        large, inputs = _network(network, x.device), pictures(BATCH, side=224).to(x.device)
        target = torch.arange(BATCH, device=x.device)
        plain = Floor(large, inputs, (BATCH,), quick)
        for name in RULED[: 4 if quick else None]:

            def run(name=name, large=large, inputs=inputs, target=target, plain=plain):
                seconds = clocked(plain, large, partial(maps_of, name, {}, large, inputs, target)).seconds
                return Spent(seconds, BATCH, BATCH)

            try:
                table.setdefault(name, {"method": name})[network] = in_turn(plain, {"": run}, 2)[""].times
            except NotApplicableError as reason:
                left_out[f"{name} on {network}"] = str(reason)
    return pd.DataFrame([row for row in table.values() if len(row) > 1]), left_out


def perturbation_table(floor, model, x, quick):
    """One picture in small batches: passes, times those of the bare network; on a GPU, memory."""
    large, inputs = _network("mobilenet_v2", x.device), pictures(1, side=224).to(x.device)
    target, rows = torch.zeros(1, dtype=torch.long, device=x.device), []
    bare = Floor(large, inputs, (CHUNK,) if quick else (2, CHUNK, 8, 16), quick)
    for name, options in MASKS.items():
        options = {"samples": 16} if quick and "samples" in options else options
        if quick and name == "score_cam":
            continue
        maps = partial(maps_of, name, {**options, "chunk": CHUNK}, large, inputs, target)
        work = in_turn(bare, {"": partial(clocked, bare, large, maps)})[""]
        row = {"method": name, "passes": work.forward, "seconds": work.seconds, "times the floor": work.times}
        rows.append(row | ({"MiB more": _grown(bare, maps)} if x.device.type == "cuda" else {}))
    return pd.DataFrame(rows), {}


def _grown(bare, maps):
    """The peak of memory in MiB above that of the bare network."""
    peaks = []
    for work in (bare.now, maps):
        torch.cuda.reset_peak_memory_stats()
        work()
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
    return peaks[1] - peaks[0]
