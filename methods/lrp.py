"""Layer-wise relevance propagation: one backward pass by the rules of `harness.methods.relevance.LRP`."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.relevance import LRP, Entry, relevance
from harness.methods.rules import AlphaBeta, Box, Epsilon, Flat, Gamma, LinearRule, Squared
from harness.registry import method
from harness.space import InputSpace
from harness.types import InputError, NotApplicableError

InputRule = Literal["same", "flat", "w2", "box"]
"""The rule of the operator that takes the input: that of the others, or flat, w2 or zB (`montavon2017explaining`)."""

ENTRIES: dict[str, Entry | None] = {
    "same": None,
    "flat": lambda *_: Flat(),
    "w2": lambda *_: Squared(),
    "box": Box,
}


def _explained(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    name: str,
    rules: tuple[LinearRule, LinearRule],
    input_rule: InputRule = "same",
    space: InputSpace | None = None,
) -> Float[Tensor, "n *shape"]:
    """The relevance of the input by one rule for linear layers, one for convolutions and one for the input.

    Raises:
        NotApplicableError: the rule for the input needs a range, and none is declared.
    """
    bounds: tuple[Tensor, ...] = ()
    if input_rule == "box":
        if space is None or space.mean is None:
            raise NotApplicableError(
                f"{name}: the zB rule needs the range of the input; declare it, as InputSpace(mean=, std=, low=, high=)"
            )
        bounds = space.bounds(x)
    return relevance(model, x, target, LRP(*rules, ENTRIES[input_rule]), name, bounds=bounds)


@method(family="backward rule", cite="bach2015pixel", conserves="output")
def lrp_0(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    r"""LRP-0: $R_j = \sum_k \frac{a_j w_{jk}}{z_k} R_k$, $z_k$ with its bias.

    On ReLU networks the same as input x gradient; on others an activation passes $\sigma(z) / z$ instead of its
    derivative. Sums to $f_t(x)$ minus what biases take.
    """
    return _explained(model, x, target, "lrp_0", (Epsilon(0.0), Epsilon(0.0)))


@method(family="backward rule", cite="bach2015pixel", conserves="output")
def lrp_epsilon(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    epsilon: float = 1e-6,
    input_rule: InputRule = "same",
) -> Float[Tensor, "n *shape"]:
    r"""LRP-epsilon: $R_j = \sum_k \frac{a_j w_{jk}}{z_k + \epsilon \, \mathrm{sign} z_k} R_k$ at every linear operator.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared, for `input_rule="box"`.
        epsilon: in units of the layers' outputs; what it takes is missing in the sum. Near the rounding of those
            outputs, as the default is in float32, a unit that nearly cancels passes on an ill-defined share.
        input_rule: the rule of the operator that takes the input.
    """
    rules = (Epsilon(epsilon), Epsilon(epsilon))
    return _explained(model, x, target, "lrp_epsilon", rules, input_rule, space)


@method(family="backward rule", cite="montavon2019layer", conserves="output")
def lrp_gamma(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    gamma: float = 0.25,
    input_rule: InputRule = "same",
) -> Float[Tensor, "n *shape"]:
    r"""LRP-gamma: contributions that have the sign of the output count $1 + \gamma$ times.

    With $c_{jk} = a_j w_{jk}$, the bias among them:
    $R_j = \sum_k \frac{c_{jk} + \gamma c_{jk}^\pm}{z_k + \gamma z_k^\pm} R_k$, with $+$ where $z_k > 0$ and $-$ where
    $z_k < 0$. That is the rule of the source where all $a_j \ge 0$ and $z_k > 0$, and holds for inputs of either sign.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared, for `input_rule="box"`.
        gamma: 0 is LRP-0; towards infinity it becomes z+.
        input_rule: the rule of the operator that takes the input.
    """
    return _explained(model, x, target, "lrp_gamma", (Gamma(gamma), Gamma(gamma)), input_rule, space)


@method(family="backward rule", cite="bach2015pixel", conserves="output")
def lrp_alpha_beta(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    alpha: float = 2.0,
    beta: float = 1.0,
    input_rule: InputRule = "same",
) -> Float[Tensor, "n *shape"]:
    r"""LRP-alpha-beta: $R_j = \sum_k (\alpha \frac{c_{jk}^+}{z_k^+} - \beta \frac{c_{jk}^-}{z_k^-}) R_k$.

    $c_{jk} = a_j w_{jk}$; $z_k^\pm$ hold the positive and the negative part of the bias. Conserves where every
    $z_k^\pm \ne 0$; relevance that meets a zero is lost.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared, for `input_rule="box"`.
        alpha: the weight of positive contributions.
        beta: the weight of negative ones, alpha - 1.
        input_rule: the rule of the operator that takes the input.

    Raises:
        InputError: alpha - beta is not 1.
    """
    if abs(alpha - beta - 1) > 1e-9 or beta < 0:
        raise InputError(f"lrp_alpha_beta: expected alpha - beta = 1 and beta >= 0, got alpha={alpha} and beta={beta}")
    rule = AlphaBeta(alpha, beta)
    return _explained(model, x, target, "lrp_alpha_beta", (rule, rule), input_rule, space)


@method(family="backward rule", cite="montavon2017explaining", conserves="output")
def lrp_z_plus(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    input_rule: InputRule = "same",
) -> Float[Tensor, "n *shape"]:
    r"""LRP-z+: $R_j = \sum_k \frac{(a_j w_{jk})^+}{\sum_i (a_i w_{ik})^+ + b_k^+} R_k$: alpha 1, beta 0.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared, for `input_rule="box"`.
        input_rule: the rule of the operator that takes the input.
    """
    rule = AlphaBeta(1.0, 0.0)
    return _explained(model, x, target, "lrp_z_plus", (rule, rule), input_rule, space)


@method(family="backward rule", cite="kohlbrenner2020towards", conserves="output")
def lrp_epsilon_plus(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    epsilon: float = 1e-6,
    input_rule: InputRule = "same",
) -> Float[Tensor, "n *shape"]:
    r"""LRP composite: convolutions by z+, linear layers by epsilon.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared, for `input_rule="box"`.
        epsilon: of linear layers.
        input_rule: the rule of the operator that takes the input; "flat" is common.
    """
    rules = (Epsilon(epsilon), AlphaBeta(1.0, 0.0))
    return _explained(model, x, target, "lrp_epsilon_plus", rules, input_rule, space)


@method(family="backward rule", cite="montavon2019layer", conserves="output")
def lrp_epsilon_gamma_box(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    epsilon: float = 1e-6,
    gamma: float = 0.25,
) -> Float[Tensor, "n *shape"]:
    r"""LRP composite: the operator that takes the input by zB, other convolutions by gamma, linear layers by epsilon.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared.
        epsilon: of linear layers.
        gamma: of convolutions.

    Raises:
        NotApplicableError: the range of the input is not declared.
    """
    rules = (Epsilon(epsilon), Gamma(gamma))
    return _explained(model, x, target, "lrp_epsilon_gamma_box", rules, "box", space)


@method(family="backward rule", cite="kohlbrenner2020towards", conserves="output")
def lrp_epsilon_alpha2_beta1(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    space: InputSpace,
    epsilon: float = 1e-6,
    input_rule: InputRule = "same",
) -> Float[Tensor, "n *shape"]:
    r"""LRP composite: convolutions by alpha-beta with $\alpha = 2$ and $\beta = 1$, linear layers by epsilon.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        space: where the range of the input is declared, for `input_rule="box"`.
        epsilon: of linear layers.
        input_rule: the rule of the operator that takes the input; "flat" is common.
    """
    rules = (Epsilon(epsilon), AlphaBeta(2.0, 1.0))
    return _explained(model, x, target, "lrp_epsilon_alpha2_beta1", rules, input_rule, space)


@method(family="backward rule", cite="montavon2017explaining", conserves="output")
def deep_taylor(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], *, space: InputSpace
) -> Float[Tensor, "n *shape"]:
    r"""Deep Taylor decomposition: z+ in the network; at the input zB where its range is declared, else w2.

    Derived for layers whose biases are not positive; elsewhere positive biases take relevance. Where no range is
    declared, w2 spreads relevance by weights alone, so that inputs behind a mask, which cannot matter, get some, too.
    """
    rule = AlphaBeta(1.0, 0.0)
    return _explained(model, x, target, "deep_taylor", (rule, rule), "w2" if space.mean is None else "box", space)


@method(family="backward rule", cite="zhang2016top")
def excitation_backprop(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    r"""Excitation backprop: $P(a_j) = \sum_k \frac{(a_j w_{jk})^+}{\sum_i (a_i w_{ik})^+} P(a_k)$.

    Starts with 1 at the target: the probability that a winner drawn from there downwards, along excitatory connections,
    ends at an input. The source has activations that are not negative; here contributions of inputs of either sign
    count when they are positive. Biases win nothing.
    """
    rule = AlphaBeta(1.0, 0.0, bias=False)
    return relevance(model, x, target, LRP(rule, rule), "excitation_backprop", relevance_one=True)


@method(family="backward rule", cite="achtibat2024attnlrp", conserves="output")
def attention_lrp(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], *, epsilon: float = 1e-6
) -> Float[Tensor, "n *shape"]:
    r"""Attention-aware LRP: LRP-epsilon that also follows relevance through the attention weights.

    At a softmax $R_i = x_i (R_i^{out} - s_i \sum_j R_j^{out})$; at a product of two tensors, matrix products included,
    half goes to each. In `lrp_epsilon` attention weights are constants. What the linearised softmax adds and takes is
    missing in the sum.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        epsilon: in units of the layers' outputs.
    """
    rule = Epsilon(epsilon)
    return relevance(model, x, target, LRP(rule, rule, softmax="taylor"), "attention_lrp")
