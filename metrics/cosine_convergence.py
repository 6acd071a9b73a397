"""Cosine similarity convergence: does the backward pass still know, further down, what it was given at the top?"""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor, nn

from harness.case import Case, counted
from harness.registry import metric
from harness.types import Count, NotApplicableError, Score

CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.MultiheadAttention)
NOT_REACHED = "the backward pass does not come by"
OTHER_AXIS = "samples are not the first axis there"
ONE_CHANNEL = "one channel has no direction"


@metric(
    family="randomization",
    direction="lower",
    headline="cosine",
    cite="sixt2020explanations",
    question="Does the backward pass forget where it started?",
    misleads="It looks at directions only; a rule may forget the class and still show what the network uses.",
)
def cosine_convergence(case: Case, *, pairs: Count = 5) -> Iterator[Score]:
    r"""Cosine similarity convergence: $|\cos(R_l, R'_l)|$ at the input of every block $l$, from the output down.

    $R$ and $R'$ start as two independent Gaussian vectors at the logits, in the place of what the method sends into its
    backward pass there. The cosine is taken over channels, position by position, and its median over positions
    reported: near 1, all that was above is forgotten but for one direction. For methods that claim to distribute the
    output, $R$ is relevance, value times what the backward pass carries; for others it is what that carries, such as a
    gradient or the multipliers of DeepLIFT. Source: `sixt2020explanations`.

    `floor_random`: the median for independent Gaussian vectors of that many channels. The row without a stage repeats
    that of the lowest block whose input has several channels and is reached: the headline.

    Undefined where there is one channel only, where no position is reached by the backward pass, and at the input of a
    block that does not have the samples along its first axis, such as tokens that are.

    Args:
        case: what to test.
        pairs: of vectors.

    Raises:
        NotApplicableError: the method does not make its maps in one backward pass through the model, or the model has
            no blocks.
    """
    entries = _entries(case)
    if not entries:
        raise NotApplicableError("the model has no block whose input could be looked at")
    watched = _by_sample(case, entries)
    found: dict[tuple[int, str], list[Float[Tensor, " _"]]] = {}
    channels = dict.fromkeys(entries, 0)
    for start in range(0, len(case.x), case.chunk):
        some = case.part(slice(start, start + case.chunk))
        for draw in range(pairs):
            first, second = (_carried(some, watched, draw, side) for side in (0, 1))
            for block in entries:
                pair = first.get(block), second.get(block)
                found.setdefault((draw, block), []).append(_cosines(*pair, some.x))
                channels[block] = pair[0].shape[1] if pair[0] is not None else channels[block]
    lowest, reasons = "", {}
    for index, block in enumerate(reversed(entries), 1):
        where: dict[str, Any] = {"mode": "top_down", "stage": block, "stage_index": index}
        if channels[block] > 1:
            floor = torch.full((len(case.x),), chance(channels[block]), dtype=torch.float64, device=case.x.device)
            yield Score("cosine", floor, role="floor_random", **where)
        lowest = block if channels[block] > 1 or not lowest else lowest
        unreached = NOT_REACHED if block in watched else OTHER_AXIS
        reasons[block] = ONE_CHANNEL if channels[block] == 1 else unreached
        for draw in range(pairs):
            yield _score(torch.cat(found[draw, block]), reasons[block], draw=draw, **where)
    for draw in range(pairs):
        yield _score(torch.cat(found[draw, lowest]), reasons[lowest], draw=draw)


def _score(values: Float[Tensor, " n"], reason: str, **labels: Any) -> Score:
    missing = values.isnan()
    return Score("cosine", values, {reason: missing} if missing.any() else {}, **labels)


def chance(channels: int) -> float:
    r"""The median of $|\cos|$ of two independent Gaussian vectors: $\cos^2$ is Beta(1/2, (d - 1) / 2) distributed."""
    return float(stats.beta.median(0.5, (channels - 1) / 2) ** 0.5)


def _entries(case: Case) -> dict[str, str]:
    """Block -> the module whose input is looked at: the one that holds its first parameter."""
    owners = {block.name: block.parameters[0].rpartition(".")[0] for block in case.source.blocks}
    return {block: owner for block, owner in owners.items() if owner}


def _by_sample(case: Case, entries: dict[str, str]) -> dict[str, str]:
    """The entries whose input has the samples along its first axis; by chance others may be as long."""
    wrong: set[str] = set()

    def expects(count: int, block: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape[:1] != (count,):
                wrong.add(block)

        return hook

    for count in (1, 2):
        with ExitStack() as hooks, torch.no_grad(), counted(case.model, case.passes):
            for block, owner in entries.items():
                hooks.callback(case.model.get_submodule(owner).register_forward_pre_hook(expects(count, block)).remove)
            case.model(torch.cat([case.x[:1]] * count))
    return {block: owner for block, owner in entries.items() if block not in wrong}


def _carried(case: Case, entries: dict[str, str], draw: int, side: int) -> dict[str, Float[Tensor, "n _ _"]]:
    """What the method's backward pass carries into the input of each block, [n, channels, positions].

    Raises:
        NotApplicableError: it is not one backward pass.
    """
    catcher = _Catcher(case, draw, side)
    with ExitStack() as hooks:
        hooks.callback(case.model.register_forward_pre_hook(catcher.enter).remove)
        hooks.callback(case.model.register_forward_hook(catcher.start).remove)
        for block, owner in entries.items():
            module = case.model.get_submodule(owner)
            hooks.callback(module.register_forward_pre_hook(catcher.at(block)).remove)
        case.explain(call=("cosine_convergence", draw))
    if catcher.started != [len(case.x)]:
        name, count = case.explainer.method.name, len(catcher.started)
        raise NotApplicableError(f"{name}: needs a method that makes its maps in one backward pass, got {count}")
    return catcher.caught


class _Catcher:
    """Sends noise into a backward pass and notes what it becomes."""

    def __init__(self, case: Case, draw: int, side: int) -> None:
        self.conserves, self.target = case.explainer.method.conserves, case.target
        self.samples = len(case.x)
        self.draws, self.draw = case.draws("cosine_convergence", side), draw
        self.input = 0
        self.outputs: list[Tensor] = []
        self.started: list[int] = []
        self.caught: dict[str, Tensor] = {}

    def enter(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note where what the model was given lies in memory."""
        self.input = _place(inputs[0])

    def start(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Put noise in the place of the gradient at the logits."""
        if not output.requires_grad:
            return output
        logits = output.detach()
        self.outputs.append(logits)

        def send(gradient: Tensor) -> Tensor | None:
            self.started.append(len(gradient))
            if self.started != [self.samples]:
                return None
            noise = self.draws.normal(gradient.shape[1], draw=self.draw).to(gradient)
            if self.conserves == "output":
                return torch.where(logits == 0, 0, noise / logits)
            if self.conserves == "difference":
                # Scaled, which no cosine sees, so that it adds up to what such a method makes sure that it does.
                change = logits - self.outputs[0]
                claim = change.gather(1, self.target[:, None])
                return noise * claim / (noise * change).sum(1, keepdim=True)
            return noise

        # A tensor of its own: rules may pass over the one that a linear layer returned.
        output = output + 0
        output.register_hook(send)
        return output

    def at(self, block: str) -> Any:
        """A hook that watches the input of a block."""

        def watch(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            x = inputs[0] if inputs else None
            if not isinstance(x, Tensor) or not x.requires_grad or len(x) != self.samples:
                return inputs
            # A sum would end the rule that some methods have for the input.
            copied = x if _place(x) == self.input else x + 0
            axis = x.ndim - 1 if isinstance(module, CHANNELS_LAST) else 1
            # The copy is what this block alone sends down; the tensor itself, where rules leave it in the graph,
            # adds what comes past the block, and its hook is called later.
            # A hook must hold nothing that has a graph: a graph that holds its own hook is never freed.
            values = x.detach()
            for tensor in (copied, x):
                tensor.register_hook(lambda gradient: self._catch(block, values, gradient, axis))
            return tuple(copied if each is x else each for each in inputs)

        return watch

    def _catch(self, block: str, values: Tensor, gradient: Tensor, axis: int) -> None:
        signal = (values * gradient if self.conserves == "output" else gradient).double()
        self.caught[block] = signal.movedim(axis, 1).reshape(len(signal), signal.shape[axis], -1)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _cosines(
    a: Float[Tensor, "n channels positions"] | None, b: Float[Tensor, "n channels positions"] | None, x: Tensor
) -> Float[Tensor, " n"]:
    """The median over positions of the absolute cosine over channels; NaN where there is none."""
    if a is None or b is None or a.shape[1] == 1:
        return torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device)
    norms = a.square().sum(1).sqrt() * b.square().sum(1).sqrt()
    # Vectors may be as small as they like, but not zero.
    cosines = torch.where(norms == 0, torch.nan, (a * b).sum(1) / norms).abs().clamp(max=1)
    return cosines.nanquantile(0.5, dim=1)
