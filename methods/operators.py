"""Interception of operators: a rule follows what the model computes, not how it is packaged.

`Rules` is active during a forward pass. It sees every functional call, whichever module made it, gives each
rectifier its rule, and leaves the forward values as they are. `prove_coverage` then reads the recorded autograd
graph: an operator that neither a rule made nor is linear or structural is refused by name, so that nothing is
silently treated as if it were not there.
"""

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.types import NotApplicableError

Rule = Callable[[Float[Tensor, "*s"], Bool[Tensor, "*s"]], Float[Tensor, "*s"]]
"""(gradient at the output, where the forward pass was not cut off) -> gradient at the input."""


def _relu(x: Tensor, inplace: bool = False) -> tuple[Tensor, float, float, bool]:
    return x, 0.0, inf, inplace


def _relu_(x: Tensor) -> tuple[Tensor, float, float, bool]:
    return x, 0.0, inf, True


def _relu6(x: Tensor, inplace: bool = False) -> tuple[Tensor, float, float, bool]:
    return x, 0.0, 6.0, inplace


def _hardtanh(
    x: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> tuple[Tensor, float, float, bool]:
    return x, float(min_val), float(max_val), inplace


def _hardtanh_(x: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> tuple[Tensor, float, float, bool]:
    return x, float(min_val), float(max_val), True


RECTIFIERS: dict[Callable[..., Any], Callable[..., tuple[Tensor, float, float, bool]]] = {
    torch.relu: _relu,
    torch.relu_: _relu_,
    torch.Tensor.relu: _relu,
    torch.Tensor.relu_: _relu_,
    F.relu: _relu,
    F.relu_: _relu_,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_,
}
"""Function -> what reads its arguments: the tensor, the lower and upper bound, whether it writes in place."""

TRANSPARENT = frozenset(
    """
    AccumulateGrad AddBackward0 SubBackward0 RsubBackward0 RsubBackward1 NegBackward0 SumBackward0 SumBackward1
    MeanBackward0 MeanBackward1 CumsumBackward0 NativeBatchNormBackward0 CudnnBatchNormBackward0
    AvgPool2DBackward0 AvgPool3DBackward0 AdaptiveAvgPool2DBackward0 AdaptiveAvgPool3DBackward0
    MaxPool2DWithIndicesBackward0 MaxPool3DWithIndicesBackward0 AdaptiveMaxPool2DBackward0
    ViewBackward0 UnsafeViewBackward0 ReshapeAliasBackward0 PermuteBackward0 TransposeBackward0 TBackward0
    ExpandBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward2 UnsqueezeBackward0 SliceBackward0
    SelectBackward0 IndexBackward0 CatBackward0 StackBackward0 SplitBackward0 SplitWithSizesBackward0
    UnbindBackward0 CloneBackward0 CopyBackwards AliasBackward0 GatherBackward0 ToCopyBackward0 UnfoldBackward0
    RollBackward0 FlipBackward0 RepeatBackward0 ConstantPadNdBackward0 ReflectionPad1DBackward0
    ReflectionPad2DBackward0 ReplicationPad1DBackward0 ReplicationPad2DBackward0 UpsampleLinear1DBackward0
    UpsampleNearest2DBackward0 UpsampleBilinear2DBackward0
    """.split()
)
"""Autograd nodes that are linear, structural or pick a winner: their own backward pass is the right one.

`CopySlices` is not among them: an in-place operation on a view hides inside it.
"""

FACTORS = {
    "AddmmBackward0": (1, 2),
    "MmBackward0": (0, 1),
    "MvBackward0": (0, 1),
    "ConvolutionBackward0": (0, 1),
}
"""Products that are linear while only one of these two arguments depends on the input."""

SCALES = {"MulBackward0": ("_saved_other", "_saved_self"), "DivBackward0": ("_saved_other",)}
"""Where a product or quotient keeps the constant, for each argument that may depend on the input."""


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, rule: Rule) -> Tensor:
        ctx.save_for_backward((x > low) & (x < high))
        ctx.rule = rule
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (passed,) = ctx.saved_tensors
        return ctx.rule(gradients[0], passed), None, None, None


class Rules(TorchFunctionMode):
    """While active, every rectifier that bounds from below at zero propagates gradients by `rule`."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace a rectifier by its ruled form; pass everything else on."""
        kwargs = kwargs or {}
        read = RECTIFIERS.get(func)
        if read is None:
            return func(*args, **kwargs)
        if "input" in kwargs:
            args, kwargs = (kwargs["input"], *args), {k: v for k, v in kwargs.items() if k != "input"}
        x, low, high, inplace = read(*args, **kwargs)
        if low != 0:
            return func(*args, **kwargs)
        y = _Rectify.apply(x, low, high, self.rule)
        # In place means that every alias of x sees the result: a new tensor would change the forward pass.
        return x.copy_(y) if inplace else y


def prove_coverage(
    output: Float[Tensor, "n classes"], leaf: Float[Tensor, "n ..."], model: nn.Module, name: str
) -> None:
    """Check that between `leaf` and `output` there is nothing but ruled and transparent operators.

    What the graph cannot show stays unseen: a rectifier made of a maximum pool, or of indexing with a mask that
    was computed from the values, looks like a structural operator.

    Raises:
        NotApplicableError: an operator has no rule; the message names the method and the operators.
    """
    nodes = _nodes_between(output, leaf)
    constants = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    strangers = sorted({_name(node) for node in nodes if not _is_covered(node, nodes, constants)})
    if strangers:
        raise NotApplicableError(
            f"{name} has no rule for: {', '.join(strangers)} (operators that this model puts between input and output)"
        )


def _is_covered(node: Any, nodes: set[Any], constants: set[int]) -> bool:
    name = _name(node)
    dependent = [index for index, (parent, _) in enumerate(node.next_functions) if parent in nodes]
    if name in FACTORS:
        return not set(FACTORS[name]) <= set(dependent)
    if name in SCALES:
        # A number, parameter or buffer scales; anything else may be a mask, and then this is a home-made ReLU.
        if len(dependent) != 1 or dependent[0] >= len(SCALES[name]):
            return False
        constant = getattr(node, SCALES[name][dependent[0]])
        return constant.ndim == 0 or constant.untyped_storage().data_ptr() in constants
    batch_statistics = name.endswith("BatchNormBackward0") and node._saved_training
    return name == "_RectifyBackward" or (name in TRANSPARENT and not batch_statistics)


def _name(node: Any) -> str:
    return str(node.name().rpartition("::")[2])


def _nodes_between(output: Tensor, leaf: Tensor) -> set[Any]:
    """The autograd nodes on some path from `output` to `leaf`."""
    consumers: dict[Any, list[Any]] = {output.grad_fn: []}
    stack: list[Any] = [output.grad_fn]
    starts: list[Any] = []
    while stack:
        node = stack.pop()
        if getattr(node, "variable", None) is leaf:
            starts.append(node)
        for parent, _ in node.next_functions if node else ():
            if parent is not None:
                if parent not in consumers:
                    consumers[parent] = []
                    stack.append(parent)
                consumers[parent].append(node)
    reached, stack = set(starts), starts
    while stack:
        fresh = [node for node in consumers[stack.pop()] if node not in reached]
        reached.update(fresh)
        stack.extend(fresh)
    return reached
