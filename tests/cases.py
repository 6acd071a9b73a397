"""Networks built for the tests: some have a closed form, the others cover what breaks attribution."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from harness.case import Case, Explainer
from harness.catalogue import METHODS, METRICS
from harness.models.loaded import LoadedModel
from harness.networks import VisionTransformer
from harness.rows import rows_of
from harness.space import InputSpace


class Linear(nn.Module):
    """f(x) = W x + b on flattened inputs of any shape: every attribution has a closed form."""

    def __init__(self, weight, bias=None):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight, self.bias)


def relu_mlp(sizes=(20, 40, 40, 30, 5), bias=0.0, seed=0):
    """A random ReLU network in float64; biases are normal with this standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for inputs, outputs in itertools.pairwise(sizes):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        layer.weight.data = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64) * (2 / inputs) ** 0.5
        layer.bias.data = bias * torch.randn(outputs, generator=generator, dtype=torch.float64)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Functional(nn.Module):
    """Convolutions, batch norm, a residual and pooling, with every operation functional."""

    def __init__(self, channels=2):
        super().__init__()
        self.stem = nn.Conv2d(channels, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.block = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.block(x))
        x = F.max_pool2d(x, 2)
        return self.head(x.mean((2, 3)))


class InPlace(nn.Module):
    """One ReLU module, in place and used three times, first of all on the input itself."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.first = nn.Conv2d(2, 5, 3)
        self.second = nn.Conv2d(5, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = self.relu(self.first(self.relu(x)))
        return self.head(self.relu(self.second(x)).mean((2, 3)))


def _modules():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 4),
    )


def _gelu():
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4))


def _tanh():
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 5 * 5, 4))


class Gated(nn.Module):
    """Squeeze and excitation: channels are scaled by a sigmoid of their means."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(2, 6, 3), nn.Linear(6, 3), nn.Linear(3, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.silu(self.stem(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return self.head((x * gate[:, :, None, None]).mean((2, 3)))


def _vit():
    return VisionTransformer((2, 12, 12), 4, patch=4, width=12, depth=2, heads=2)


def _signal():
    return nn.Sequential(nn.Conv1d(2, 6, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6 * 10, 4))


def _table():
    return nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 4))


SHAPES = {
    "modules": (_modules, (2, 12, 12)),
    "functional": (Functional, (2, 12, 12)),
    "in_place": (InPlace, (2, 12, 12)),
    "gelu": (_gelu, (2, 12, 12)),
    "tanh": (_tanh, (2, 12, 12)),
    "gated": (Gated, (2, 12, 12)),
    "vit": (_vit, (2, 12, 12)),
    "signal": (_signal, (2, 24)),
    "table": (_table, (9,)),
}
"""Name -> (constructor, shape of one input)."""


def network(name, dtype=torch.float32, n=5):
    """A network of `SHAPES` with lively batch norms, in evaluation mode, and a batch for it: (model, x, target)."""
    build, shape = SHAPES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        x = torch.rand(n, *shape)
    return model.to(dtype).eval(), x.to(dtype), torch.arange(n) % 4


def case_of(model, x, target, maps, *, build=None, seed=0, chunk=64, space=None, samples=None):
    """A case as the engine would make it; `maps` are given, or the name of a method, or (name, options)."""
    ids = samples or [f"s{index}" for index in range(len(x))]
    given = isinstance(maps, torch.Tensor)
    name, options = ("constant" if given else maps, {}) if not isinstance(maps, tuple) else maps
    kinds = {4: "image", 3: "signal", 2: "table"}
    channels = x.shape[1]
    space = space or InputSpace(kinds[x.ndim], mean=(0.0,) * channels, std=(1.0,) * channels)
    source = LoadedModel(model, build, seed, x[:1], lambda: x)
    case = Case(model, source, Explainer(METHODS[name], options), x, target, ids, space, seed, chunk)
    if given:
        case.__dict__["maps"] = maps
    return case


def with_truth(case):
    """The case with masks, of images what is above their mean, and with three stripes as parts."""
    x = case.x
    case.masks = (x[:, :1] > x.mean()).to(x)
    stripe = torch.arange(x.shape[-1], device=x.device) * 3 // x.shape[-1]
    parts = (stripe == torch.arange(3, device=x.device)[:, None]).to(x)[:, None].expand(-1, x.shape[-2], -1)
    case.parts = (parts.expand(len(x), -1, -1, -1), x[:, None] * (1 - parts[:, None]))
    return case


def rows(case, metric, **options):
    """The rows of a metric as a data frame, checked as in production."""
    scores = METRICS[metric].function(case, **METRICS[metric].resolve(options))
    return rows_of(scores, case.samples, case.target).to_pandas()


def values(frame, measure, **where):
    """The values of one measure, in the order of the samples."""
    frame = frame[frame["measure"] == measure]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return torch.tensor(frame["value"].to_numpy(copy=True))
