"""The doctor: what a model is, what it costs, which methods apply to it, and what would make results wrong."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from harness.applicability import applicability, applicability_table
from harness.catalogue import MODELS
from harness.costs import Cost, cost_of
from harness.data import Data, of_tensors
from harness.findings import Finding, in_gradient, in_model, in_output, in_repetition, in_samples, wrapping
from harness.model_entries import DataEntry, ModelEntry, head_of, models_of
from harness.models.loaded import RANDOM, LoadedModel
from harness.models.loading import FIRST_READABLE, NoWeightsError, Wanted, load_model
from harness.places import Place
from harness.progress import silent
from harness.shapes import NOISE_ENDS, guess_shape, noise
from harness.space import InputSpace
from harness.subjects import Reader, Subject, candidates, load_data, load_source
from harness.training import Progress
from harness.twins import constructor_fault
from harness.types import InputError

METHOD_SAMPLES = 2
GRADIENT_SAMPLES = 8
FEWEST_FOR_CHANCE = 16
CHANCE_LEVEL = 0.05
BATCH = 32


@dataclass
class Diagnosis:
    """What the doctor found out; empty parts could not be examined because of a finding.

    Attributes:
        label: the model.
        facts: name -> what is so.
        findings: what makes results wrong or is worth knowing, with remedies.
        blocks: the blocks of the network in execution order, with their numbers of parameters.
        cost: of one batch.
        methods: see `harness.applicability`.
    """

    label: str
    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    blocks: pd.DataFrame = field(default_factory=pd.DataFrame)
    cost: Cost | None = None
    methods: pd.DataFrame = field(default_factory=pd.DataFrame)


def examine_entry(
    entry: ModelEntry,
    base: Path,
    *,
    samples: int,
    device: torch.device,
    assumed: Sequence[str] = (),
    progress: Progress = silent,
) -> Diagnosis:
    """Examine the model and data of a study's entry. Without data, on noise of a shape that the model takes.

    Args:
        entry: the model and its data.
        base: what paths are relative to.
        samples: how many to examine.
        device: where.
        assumed: what somebody had to assume about the data; a finding.
        progress: told what happens.
    """
    source = load_source(entry, base)
    wanted = Wanted(entry.weights, head_of(entry), entry.model_seed, base, entry.recipe)
    if isinstance(entry.data, DataEntry):
        data, select = load_data(entry.data, base, source, entry.weights), entry.data.select
    else:
        shape = source.input_shape(entry.weights)
        network = None if shape else source.build((), 0)
        if network and wrapping(network):
            return Diagnosis(entry.name, findings=in_model(network))
        data, select = noise(guess_shape(network) if network else shape or ()), "first"
    found = [Finding(each, "cope") for each in assumed]
    try:
        model = load_model(source, data, wanted, seed=0, device=device, progress=progress)
    except NoWeightsError as error:
        found.append(Finding(f"examined with random weights: {error}", "refuse"))
        wanted = replace(wanted, weights=RANDOM)
        model = load_model(source, data, wanted, seed=0, device=device, progress=progress)
    rows = list(candidates(data, "first" if select == "correct" else select)[:samples])
    return _examine(entry.name, model, data, rows, found, progress)


def applicability_of(models: Sequence[str], base: Path, *, device: torch.device, progress: Progress) -> pd.DataFrame:
    """Methods x models, the built-in ones by default, with random weights and on noise: see `applicability_table`."""
    names = list(models) or [name for name, entry in MODELS.items() if not entry.argument]
    tables = {}
    for position, entry in enumerate(models_of(names, None, Place("arguments"), needs_data=False)):
        progress("models", position / len(names), entry.name)
        source = load_source(entry, base)
        data = noise(source.shape or guess_shape(source.build((), 0)), ends=NOISE_ENDS)
        model = load_model(source, data, Wanted(RANDOM), seed=0, device=device, progress=progress)
        tables[entry.name] = _methods(entry.name, model, data, progress)
    progress("models", 1.0, "")
    return applicability_table(tables)


def doctor(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " labels"] | None = None,
    *,
    space: InputSpace | None = None,
    build: Callable[[], nn.Module] | None = None,
) -> Diagnosis:
    """Examine a model and samples at hand; the arguments are those of `harness.evaluate`.

    Raises:
        InputError: there are no samples, or they do not fit the space.
    """
    if len(x) == 0:
        raise InputError("x holds no samples")
    if wrapping(model):
        return Diagnosis(type(model).__name__, findings=in_model(model))
    space = space or InputSpace.undeclared(x)
    space.check(x)
    data = of_tensors("tensors", x.detach(), y, space)
    found = []
    parameter = next(model.parameters(), x)
    if (parameter.dtype, parameter.device) != (x.dtype, x.device):
        problem = (
            f"the model has {parameter.dtype} parameters on {parameter.device}, x is {x.dtype} on {x.device}: "
            "convert one of them (here x was)"
        )
        found.append(Finding(problem, "refuse"))
    fault = constructor_fault(model, build) if build else ""
    if fault:
        found.append(Finding(f"build() makes no twins of the model: {fault}", "refuse"))
    x = x.detach().to(parameter.device, parameter.dtype)
    loaded = LoadedModel(model, None if fault else build, 0, x[:1], lambda: x)
    return _examine(type(model).__name__, loaded, data, list(range(len(x))), found, silent)


def _examine(
    label: str, model: LoadedModel, data: Data, rows: list[int], found: list[Finding], progress: Progress
) -> Diagnosis:
    network = model.model
    diagnosis = Diagnosis(label, _facts(model), [*found, *in_model(network)])
    readable, cpu, errors = data.readable(rows)
    if errors:
        diagnosis.findings.append(Finding(f"{len(errors)} samples cannot be read: {'; '.join(errors[:3])}", "cope"))
    if not readable:
        diagnosis.findings.append(Finding("there are no samples to examine the model with", "refuse"))
        return diagnosis
    x, ids = cpu.to(model.example.device, model.example.dtype), [data.ids[row] for row in readable]
    diagnosis.facts["input"] = f"{list(x.shape[1:])} {data.space.kind}, {data.name}, {len(x)} samples"
    faults = in_samples(x, data.space, ids)
    diagnosis.findings += faults
    if wrapping(network) or any(fault.action == "refuse" for fault in faults):
        return diagnosis
    try:
        with torch.no_grad():
            outputs = [network(part.clone()) for part in x.split(BATCH)]
    except Exception as error:
        problem = f"the model raises on inputs of shape {list(x.shape)}: {type(error).__name__}: {error}"
        diagnosis.findings.append(Finding(problem.partition("\n")[0], "refuse"))
        return diagnosis
    parts = zip(outputs, (ids[start : start + BATCH] for start in range(0, len(ids), BATCH)), strict=True)
    wrong = [finding for output, part in parts for finding in in_output(output, part) if finding.action == "refuse"]
    if wrong:
        diagnosis.findings.append(wrong[0])
        return diagnosis
    output = torch.cat(outputs)
    diagnosis.findings += in_output(output, ids)
    diagnosis.facts["output"] = str(list(output.shape[1:]))
    if data.labels is not None:
        diagnosis.facts["accuracy"] = told = _accuracy(output.cpu(), data, readable)
        if not model.origin.startswith(RANDOM) and not told.startswith("unknown"):
            diagnosis.findings += _no_better_than_chance(output.cpu(), data.labels[torch.tensor(readable)])
    if _refused(diagnosis, found):
        return diagnosis
    repeated = in_repetition(network, x[:BATCH], output[:BATCH], ids)
    diagnosis.findings += [finding for finding in repeated if finding not in diagnosis.findings]
    if _refused(diagnosis, found):
        return diagnosis
    diagnosis.findings += in_gradient(network, x[:GRADIENT_SAMPLES])
    diagnosis.blocks = _blocks(model)
    diagnosis.cost = cost_of(network, x[:BATCH])
    diagnosis.methods = _methods(label, model, data, progress)
    return diagnosis


def _accuracy(output: Float[Tensor, "n classes"], data: Data, rows: list[int]) -> str:
    """How many of these samples are classified correctly, in words."""
    assert data.labels is not None
    labels, outputs = data.labels[torch.tensor(rows)], output.shape[1]
    if data.classes and len(data.classes) != outputs:
        return f"unknown, because the data have {len(data.classes)} classes by name and the model {outputs} outputs"
    if not 0 <= int(labels.min()) <= int(labels.max()) < outputs:
        return f"unknown, because the labels lie outside 0 to {outputs - 1}"
    hits = int((output.argmax(1) == labels).sum())
    return f"{hits} of {len(rows)} = {hits / len(rows):.2%}"


def _no_better_than_chance(output: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> list[Finding]:
    """Whether always answering the commonest class would do as well, as far as so few samples can tell."""
    hits, commonest = int((output.argmax(1) == labels).sum()), int(labels.bincount().max())
    if len(labels) < FEWEST_FOR_CHANCE or commonest == len(labels):
        return []
    if binomtest(hits, len(labels), commonest / len(labels), alternative="greater").pvalue < CHANCE_LEVEL:
        return []
    problem = (
        f"{hits} of {len(labels)} are classified correctly, and the commonest class alone would give {commonest}: "
        "is the preprocessing that of the training, are the classes in its order, are these its weights?"
    )
    return [Finding(problem, "cope")]


def _refused(diagnosis: Diagnosis, known: list[Finding]) -> bool:
    """Whether there is something besides what is known that keeps the model from being examined further."""
    return any(finding.action == "refuse" for finding in diagnosis.findings if finding not in known)


def _methods(label: str, model: LoadedModel, data: Data, progress: Progress) -> pd.DataFrame:
    subject = few_of(label, model, data)
    return applicability(subject, chunk=len(subject.rows), progress=progress)


def few_of(label: str, model: LoadedModel, data: Data) -> Subject:
    """The first readable samples, just enough to try methods on, with the predicted classes."""
    rows, cpu, _ = data.readable(range(min(len(data), FIRST_READABLE)))
    reader, rows = Reader(data, model.example.device, model.example.dtype), rows[:METHOD_SAMPLES]
    with torch.no_grad():
        predicted = model.model(cpu[: len(rows)].to(reader.device, reader.dtype)).argmax(1)
    return Subject(label, model, reader, tuple(rows), predicted, ("",) * len(rows))


def _facts(model: LoadedModel) -> dict[str, str]:
    network = model.model
    parameters = list(network.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    kinds = pd.Series([type(m).__name__ for m in network.modules() if not list(m.children())]).value_counts()
    types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    places = sorted({str(parameter.device) for parameter in parameters})
    return {
        "class": type(network).__name__,
        "weights": model.origin or "as given",
        "twins": model.note,
        "recipe": _recipe(model),
        "parameters": f"{count:,} in {len(parameters)} tensors, {' '.join(types)} on {' '.join(places)}",
        "modules": ", ".join(f"{number} {kind}" for kind, number in kinds.items()),
    }


def _recipe(model: LoadedModel) -> str:
    """Whether networks like this one can be trained, which some tests need."""
    if model.school is None:
        return "none, so no partner trained on permuted labels: `recipe: FILE.py:FUNCTION` in a study names one"
    return f"{model.school.recipe.title or 'built in'}, on {model.school.data.name}"


def _blocks(model: LoadedModel) -> pd.DataFrame:
    sizes = {name: parameter.numel() for name, parameter in model.model.named_parameters()}
    rows = [
        {
            "block": block.name,
            "parameters": sum(sizes[name] for name in block.parameters),
            "buffers": len(block.buffers),
        }
        for block in model.blocks
    ]
    return pd.DataFrame(rows)
