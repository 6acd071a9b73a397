"""LRP and guided backprop on networks with published weights. Prints a Markdown table; needs their files.

Biases and the shifts of batch norms are set to zero, so that LRP-epsilon must add up to the logit. Run as `python
tests/published.py FOLDER`, with the files that results/reference/models/networks.yaml names in the folder.
"""

import argparse
from pathlib import Path

import torch

from harness.methods.backward import deconvnet, guided_backprop
from harness.methods.gradients import gradient
from harness.methods.lrp import lrp_epsilon
from harness.progress import silent
from harness.study import load_study
from harness.subjects import load_entry

EPSILON = 1e-12
STUDY = Path(__file__).parents[1] / "results/reference/models/networks.yaml"
COLUMNS = "network | numbers | LRP-epsilon: largest residual | guided backprop: difference | DeconvNet: difference"


def without_biases(model):
    """The same network with every bias and every running mean zero."""
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.zero_()
    return model


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    arguments = parser.parse_args()
    print(f"| {COLUMNS} |\n|{' --- |' * 5}")
    for entry in load_study(str(STUDY)).models[:3]:
        loaded, data = load_entry(entry, arguments.folder, seed=0, device=torch.device("cpu"), progress=silent)
        model = without_biases(loaded.model)
        x = data.batch(range(0, len(data.ids), len(data.ids) // arguments.samples))
        for dtype in (torch.float64, torch.float32):
            model, x = model.to(dtype), x.to(dtype)
            with torch.no_grad():
                logit, target = model(x).max(1)
            relevance = lrp_epsilon(model, x, target, space=data.space, epsilon=EPSILON)
            residual = (relevance.flatten(1).sum(1) / logit - 1).abs().max()
            plain = gradient(model, x, target)
            others = [method(model, x, target) for method in (guided_backprop, deconvnet)]
            apart = [f"{(maps - plain).norm() / plain.norm():.2f}" for maps in others]
            cells = (entry.name, str(dtype).removeprefix("torch."), f"{residual:.0e}", *apart)
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
