"""Training history: what a network told apart at the start, in the middle and at the end, and what it got wrong."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from harness.case import Source
from harness.introspecting import Samples
from harness.registry import introspection
from harness.space import InputSpace
from harness.types import Artifact, NonNegative, Score

OTHERS = "others"
"""What is predicted and no sample's class."""


@dataclass(frozen=True)
class Answers:
    """What a network says of the samples.

    Attributes:
        predicted: the class.
        confidence: its probability.
    """

    predicted: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]


@introspection(
    compares={"macro_f1": "higher"},
    cite="toneva2019empirical",
    needs=("labels", "recipe"),
    uses=("recipe",),
    question="Which classes does the network tell apart, since when, and which samples does it get wrong?",
    misleads="that a trained network classifies better than random ones surprises nobody: the verdict says that labels "
    "and outputs belong together, and what is to be seen are the confusions; of weights that were not trained by the "
    "recipe at hand it is the history of another network.",
)
def training_history(
    model: nn.Module,
    space: InputSpace,
    data: Samples,
    *,
    pictures: NonNegative = 8,
    source: Source,
    chunk: int,
    reference: nn.Module,
) -> Iterator[Score | Artifact]:
    r"""Precision, recall and F1 of each class, confusions and errors, now and on the way of the training.

    With the hits $TP$ of a class, $FP$ samples of others that were taken for it, and $FN$ of its own that were taken
    for others: precision is $TP / (TP + FP)$, recall $TP / (TP + FN)$, and F1 $2 TP / (2 TP + FP + FN)$. The macro
    average of F1 has all classes count the same. Only classes count that some sample has.

    What is compared is of the network that is asked about. The trained network also has a history: it is trained over
    again by its recipe from its own seed, and asked on the way (`harness.models.course`). Samples that were right at
    some moment on the way and are wrong at the end are forgotten (`toneva2019empirical`); those that were right at
    none were never learnt.

    Yields:
        `macro_f1` and `accuracy`; by class, in the place of a layer, `precision`, `recall` and `f1`; all of them in
        [0, 1]. Precision is undefined of a class that is never predicted. With a history the same by fraction of the
        training, and the shares of samples that are `forgotten` and `never_learnt`.

    Args:
        model: returns logits [n, classes].
        space: what the numbers in the samples mean; pictures are yielded of images.
        data: samples with labels, on which the network was not trained.
        pictures: how many errors of each kind are shown.
        source: trains the network over again.
        chunk: how many samples go through a network at once.
        reference: the trained network; only it has a history.
    """
    assert data.labels is not None
    truth, now = data.labels.cpu(), answers(model, data.x, chunk)
    yield from scores_of(truth, now, data)
    yield _confusions("confusions", truth, now, data, "What the network takes samples of each class for.")
    if model is not reference:
        return
    history = [(step, answers(network, data.x, chunk)) for step, network in source.history()]
    for step, then in history:
        yield from scores_of(truth, then, data, step)
    moments = {"start": history[0], "middle": min(history, key=lambda each: abs(each[0] - 0.5))}
    for name, (step, then) in moments.items():
        caption = f"What it takes samples of each class for when {step:.0%} of the training is done."
        yield _confusions(f"confusions, {name}", truth, then, data, caption)
    yield _course(truth, history, data)
    # Before the first step a network is right by luck.
    right = torch.stack([then.predicted == truth for _, then in history[1:]])
    forgotten, never = right.any(0) & ~right[-1], ~right.any(0)
    yield Score("forgotten", forgotten.double().mean())
    yield Score("never_learnt", never.double().mean())
    if space.kind == "image" and pictures:
        end = history[-1][1]
        for name, which, told, words in (
            ("most confident errors", now.predicted != truth, now, "wrong, of which these are the most certain"),
            ("forgotten", forgotten, end, "right at some moment of the training and wrong at its end"),
            ("never learnt", never, end, "right at no moment of the training"),
        ):
            yield from _pictures(name, which, truth, told, data, pictures, words)


def answers(model: nn.Module, x: Float[Tensor, "n ..."], chunk: int) -> Answers:
    """What a network says, on the CPU."""
    # Clones, because a network may write into its input.
    logits = torch.cat([model(part.clone()) for part in x.split(chunk)])
    confidence, predicted = logits.double().softmax(1).max(1)
    return Answers(predicted.cpu(), confidence.cpu())


def scores_of(truth: Int[Tensor, " n"], told: Answers, data: Samples, step: float | None = None) -> Iterator[Score]:
    """The measures of `training_history` at one moment."""
    from sklearn.metrics import precision_recall_fscore_support

    classes = truth.unique().tolist()
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth.numpy(), told.predicted.numpy(), labels=classes, zero_division=np.nan
    )
    yield Score("macro_f1", torch.tensor(float(f1.mean())), step=step)
    yield Score("accuracy", (told.predicted == truth).double().mean(), step=step)
    for row, index in enumerate(classes):
        for measure, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            value = torch.tensor(float(values[row]))
            undefined = {"the class is never predicted": torch.tensor(True)} if value.isnan() else {}
            yield Score(measure, value, undefined, stage=data.name(index), stage_index=index, step=step)


def _confusions(name: str, truth: Int[Tensor, " n"], told: Answers, data: Samples, caption: str) -> Artifact:
    from sklearn.metrics import confusion_matrix

    classes = truth.unique()
    known = torch.isin(told.predicted, classes)
    taken = torch.where(known, told.predicted, -1)
    wanted = classes.tolist() if known.all() else [*classes.tolist(), -1]
    matrix = confusion_matrix(truth.numpy(), taken.numpy(), labels=wanted)[: len(classes)]
    return Artifact(
        name,
        "matrix",
        torch.from_numpy(matrix),
        labels=tuple(data.name(each) for each in classes.tolist()),
        columns=tuple(OTHERS if each < 0 else data.name(each) for each in wanted),
        axes=("class", "predicted as"),
        caption=caption,
    )


def _course(truth: Int[Tensor, " n"], history: Sequence[tuple[float, Answers]], data: Samples) -> Artifact:
    """F1 of each class on the way."""
    from sklearn.metrics import f1_score

    classes = truth.unique().tolist()
    lines = [f1_score(truth.numpy(), then.predicted.numpy(), labels=classes, average=None) for _, then in history]
    return Artifact(
        "F1 of each class during training",
        "curves",
        torch.tensor(np.array(lines)).T.float(),
        labels=tuple(data.name(each) for each in classes),
        columns=tuple(step for step, _ in history),
        axes=("F1", "fraction of the training"),
        caption="When each class was learnt.",
    )


def _pictures(
    name: str,
    which: Bool[Tensor, " n"],
    truth: Int[Tensor, " n"],
    told: Answers,
    data: Samples,
    most: int,
    words: str,
) -> Iterator[Artifact]:
    """Some samples of a kind, those first of whose wrong class the network is most certain."""
    rows = which.nonzero().flatten()
    rows = rows[told.confidence[rows].argsort(descending=True, stable=True)]
    if len(rows):
        shown = rows[:most]
        yield Artifact(
            name,
            "pictures",
            data.x[shown.to(data.x.device)],
            labels=tuple(
                f"true {data.name(int(truth[row]))}, said {data.name(int(told.predicted[row]))} "
                f"({told.confidence[row]:.2f})"
                for row in shown.tolist()
            ),
            caption=f"{len(rows)} of {len(truth)} samples are {words}.",
        )
