"""Models of which gradients and their integrals are known, and what the tests of gradients and rules share."""

import torch
from torch import nn

from harness.random import Draws

EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Quadratic(nn.Module):
    """f_k(x) = x^T A_k x."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = matrices

    def forward(self, x):
        return torch.einsum("ni,kij,nj->nk", x, self.matrices, x)


class Power(nn.Module):
    """f_0(x) = sum_i x_i^d."""

    def __init__(self, degree):
        super().__init__()
        self.degree = degree

    def forward(self, x):
        return (x**self.degree).sum(1, keepdim=True)


def draws_for(x, *parts):
    return Draws.of([f"sample {i}" for i in range(len(x))], *parts)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explained(model, x, target):
    with torch.no_grad():
        return model(x).gather(1, target[:, None])[:, 0]


class Read(nn.Module):
    """Four fixed linear functions of whatever `function(x, *layers)` returns; its layers are drawn anew."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers).double()
        for index, parameter in enumerate(self.layers.parameters()):
            scale = parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 2
            parameter.data = normal(*parameter.shape, seed=50 + index) / scale
        for module in self.layers.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(normal(module.num_features, seed=8))
                module.running_var.copy_(normal(module.num_features, seed=9).exp())
        self.eval()

    def forward(self, x):
        z = self.function(x, *self.layers).flatten(1)
        return z @ normal(z.shape[1], 4, seed=9)
