"""What a model computes: the operators and their families, and one call of one.

A rule follows what is computed, not how it is packaged: `F.relu`, `nn.ReLU`, `Tensor.relu_` and `clamp(min=0)` are
calls of rectifiers, whichever module makes them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from harness.tensors import tensors_in

FAMILIES = {
    name: family
    for family, names in {
        "dense": "linear",
        "convolution": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d",
        "matmul": "matmul mm bmm mv einsum",
        "activation": """relu relu6 hardtanh clamp clamp_min clamp_max threshold maximum minimum leaky_relu prelu elu
            selu celu gelu silu mish hardswish softplus sigmoid hardsigmoid logsigmoid tanh softsign
            tanhshrink hardshrink softshrink""",
        "product": "mul",
        "quotient": "div",
        "batch_norm": "batch_norm",
        "normalization": "layer_norm group_norm instance_norm rms_norm",
        "softmax": "softmax log_softmax",
        "maximum": """max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices
            max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d""",
        "index": "getitem gather index_select take_along_dim masked_fill",
        "join": "cat stack pad",
        "sum": "add sub subtract rsub",
        "elementwise": "exp log sqrt rsqrt reciprocal pow square sin cos erf",
        "norm": "linalg_vector_norm norm var std var_mean",
    }.items()
    for name in names.split()
}
"""Operator -> family. What is not listed runs as it is, and is refused if the graph shows more than a sum in it."""

STRUCTURE = frozenset(
    """
    view reshape permute transpose t flatten unflatten squeeze unsqueeze expand expand_as broadcast_to contiguous clone
    to float double half bfloat16 type_as type chunk split tensor_split unbind getitem narrow select roll flip repeat
    repeat_interleave tile movedim moveaxis swapaxes swapdims dropout pad unfold pixel_shuffle pixel_unshuffle
    channel_shuffle get cat stack swapaxes index_select masked_fill positive
    """.split()
)
"""Operators that only move numbers about, so that what is known of a tensor holds for the result."""

TRANSPARENT = frozenset(
    """
    AccumulateGrad AddBackward0 SubBackward0 RsubBackward0 RsubBackward1 NegBackward0 SumBackward0 SumBackward1
    MeanBackward0 MeanBackward1 CumsumBackward0 AvgPool2DBackward0 AvgPool3DBackward0 AdaptiveAvgPool2DBackward0
    AdaptiveAvgPool3DBackward0 ViewBackward0 UnsafeViewBackward0 ReshapeAliasBackward0 PermuteBackward0
    TransposeBackward0 TBackward0 ExpandBackward0 SqueezeBackward0 SqueezeBackward1 SqueezeBackward2
    UnsqueezeBackward0 SliceBackward0 SelectBackward0 CatBackward0 StackBackward0 SplitBackward0
    SplitWithSizesBackward0 UnbindBackward0 CloneBackward0 CopyBackwards AliasBackward0 ToCopyBackward0
    UnfoldBackward0 RollBackward0 FlipBackward0 RepeatBackward0 ConstantPadNdBackward0 ReflectionPad1DBackward0
    ReflectionPad2DBackward0 ReplicationPad1DBackward0 ReplicationPad2DBackward0 UpsampleLinear1DBackward0
    UpsampleNearest1DBackward0 UpsampleNearest2DBackward0 UpsampleBilinear2DBackward0 PixelShuffleBackward0
    PixelUnshuffleBackward0 AsStridedBackward0 AsStridedBackward1
    """.split()
)
"""Autograd nodes that add or move numbers: their own backward pass is the right one, whoever made them.

`CopySlices` is not among them: an in-place operation on a view hides inside it.
"""

_ALIASES = {
    "multiply": "mul",
    "imul": "mul",
    "rmul": "mul",
    "divide": "div",
    "true_divide": "div",
    "truediv": "div",
    "itruediv": "div",
    "idiv": "div",
    "clip": "clamp",
    "log_sigmoid": "logsigmoid",
    "concat": "cat",
    "concatenate": "cat",
}
_FIRST = ("input", "self", "tensors", "tensor", "x")
_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "idiv", "ipow")
VALUE_FREE = frozenset(
    """
    size dim numel stride nelement ndimension element_size is_contiguous get_device zeros_like ones_like empty_like
    full_like rand_like randn_like new_zeros new_ones new_empty new_full is_floating_point is_complex
    storage_offset data_ptr untyped_storage
    """.split()
)
"""Operators whose result does not depend on the values of the tensor."""

HOOKING = frozenset("register_hook retain_grad set".split())
"""Calls that leave something on the tensor itself."""

ATOMIC = HOOKING | {"softsign", "tanhshrink"}
"""Functions written in Python that are one operator all the same."""

COPIES = frozenset("clone contiguous to".split())
PERHAPS_NOTHING = frozenset("get dropout feature_dropout alpha_dropout contiguous to float double".split())
_OVERRIDES = {f"has_torch_function{end}": lambda *_: False for end in ("", "_unary", "_variadic")}


@dataclass(frozen=True)
class Call:
    """One call of an operator by the model."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inplace: bool

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call":
        """The call with the operator's plain name and its first argument in front."""
        spelled = function.__name__.partition(".")[0]
        bare = spelled.strip("_")
        if not args and (key := next((key for key in _FIRST if key in kwargs), "")):
            args, kwargs = (kwargs[key],), {name: value for name, value in kwargs.items() if name != key}
        inplace = (spelled.endswith("_") and not spelled.endswith("__")) or bare in _IN_PLACE
        return cls(_ALIASES.get(bare, bare), function, args, kwargs, inplace)

    def split(self, *names: str) -> tuple[list[Any], tuple[Any, ...], dict[str, Any]]:
        """The arguments of these names, given by position or by keyword, and the others."""
        kwargs = dict(self.kwargs)
        found = [*self.args[: len(names)]]
        found += [kwargs.pop(name, None) for name in names[len(found) :]]
        return found, self.args[len(names) :], kwargs

    def on(self, *first: Any) -> Any:
        """The operator on other first arguments, into a new tensor."""
        return replace(self, args=(*first, *self.args[len(first) :])).aside().run()

    def run(self) -> Any:
        """The operator on its arguments."""
        return self.function(*self.args, **self.kwargs)

    def aside(self) -> "Call":
        """The same call into a new tensor, where this one writes in place."""
        return replace(self, function=partial(_on_a_clone, self.function), inplace=False) if self.inplace else self

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """The same call with other tensors."""
        args, kwargs = self.args, self.kwargs
        return replace(self, args=_mapped(args, change), kwargs={key: _mapped(kwargs[key], change) for key in kwargs})

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return tensors_in((self.args, tuple(self.kwargs.values())))


def _on_a_clone(function: Callable[..., Any], first: Tensor, *rest: Any, **kwargs: Any) -> Any:
    return function(first.clone(), *rest, **kwargs)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_mapped(each, change) for each in value) if type(value) in (tuple, list) else value


@cache
def opened(function: FunctionType) -> Callable[..., Any]:
    """The same function, written in Python, with its check for an override switched off.

    With the check it would hand itself over for ever; without it, the operators inside are seen one by one.
    """
    body = FunctionType(
        function.__code__,
        {**function.__globals__, **_OVERRIDES},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    body.__kwdefaults__ = function.__kwdefaults__
    return body


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores.softmax(-1) @ value
    masked = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == -torch.inf
    # Who may attend to nothing gets zeros.
    nothing = masked.all(-1, keepdim=True)
    scores = scores if attn_mask.dtype == torch.bool else scores + attn_mask
    scores = scores.masked_fill(masked, -torch.inf).masked_fill(nothing, 0.0)
    return scores.softmax(-1).masked_fill(nothing, 0.0) @ value


def _added_product(input: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:  # noqa: A002
    product = left @ right
    product = product if alpha == 1 else product * alpha
    return product + (input if beta == 1 else input * beta)


DECOMPOSED: dict[str, Callable[..., Tensor]] = {
    "scaled_dot_product_attention": _attention,
    "addmm": _added_product,
    "baddbmm": _added_product,
}
"""Operators that bundle others, written out."""
