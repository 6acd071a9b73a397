"""What the comparisons with other libraries share: maps by our functions, and a row of a table."""

import torch

from bench_floor import SPACE
from harness import METHODS
from harness.random import Draws


def maps_of(name, options, model, x, target):
    """Maps by a function of ours, called as it is, without the harness around it."""
    entry = METHODS[name]
    filled = {
        "baseline": torch.zeros_like(x),
        "background": x,
        "draws": Draws.of([f"sample/{row}" for row in range(len(x))], 0, name, device=x.device),
        "space": SPACE,
    }
    given = {key: value for key, value in filled.items() if key in entry.parameters}
    return entry.function(model, x, target, **{**given, **options})


def compared(labels, ours, theirs):
    """A row: what was compared, passes and times the floor of both, and how many times faster ours is."""
    return {
        **labels,
        "our passes": ours.forward + ours.backward,
        "our seconds": ours.seconds,
        "ours, times the floor": ours.times,
        "their passes": theirs.forward + theirs.backward,
        "their seconds": theirs.seconds,
        "theirs, times the floor": theirs.times,
        "times faster": theirs.seconds / ours.seconds,
    }
