"""A function of the user as a training recipe: `recipe: FILE.py:FUNCTION` in a model entry."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.data.files import existing
from harness.digests import digest
from harness.entries import nearest
from harness.plugins import code_of, imports_from, load_file
from harness.random import seed_of
from harness.training import Lesson, Progress
from harness.types import InputError

OFFERED = ("seed", "permuted", "progress")
"""Keywords that a function is given if its signature has them."""


@dataclass(frozen=True)
class OwnRecipe:
    """`FUNCTION(model, x, y)` trains a new network in place, or returns one of the same architecture.

    Attributes:
        title: FILE.py:FUNCTION, as the study has it.
        function: the function; also takes those of the keywords `seed` (int), `permuted` (bool: whether the labels
            are noise to be memorized) and `progress` (called with the fraction done and a word on it) that it names.
        file: where it stands.
        device: where the network and the samples are when it is called.
    """

    title: str
    function: Callable[..., object]
    file: Path
    device: torch.device

    def identity(self, initial: nn.Module) -> object:
        """The function's code, and the weights to begin with, which a constructor may load from anywhere."""
        return [self.function.__name__, code_of(self.file), digest(dict(initial.state_dict()))]

    def fit(
        self, model: nn.Module, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], lesson: Lesson, progress: Progress
    ) -> nn.Module:
        """Call the function with a new network in train mode, and with copies of the samples and labels.

        Raises:
            InputError: it raises, leaves the network as it was, returns another one, or weights are not finite.
        """
        model = model.to(self.device).train()
        place = next(model.parameters(), x)
        before, form = digest(dict(model.state_dict())), _form(model)

        def told(fraction: float, detail: object = "") -> None:
            progress(lesson.title, float(fraction), str(detail))

        offered = dict(zip(OFFERED, (lesson.seed, lesson.permuted, told), strict=True))
        options = {name: value for name, value in offered.items() if name in signature(self.function).parameters}
        told(0.0, f"by {self.title}")
        try:
            with imports_from(self.file.parent), _also_seeded(self.device, lesson):
                given = x.to(self.device, place.dtype, copy=True), y.to(self.device, copy=True)
                returned = self.function(model, *given, **options)
        except (Exception, SystemExit) as error:
            shape, where = list(x.shape), self._line_of(error)
            raise InputError(
                f"recipe {self.title}: {self.function.__name__}() raised {type(error).__name__}{where}: {error}; it "
                f"was given a new {type(model).__name__}, x {shape} {place.dtype} and y [{len(y)}] on {self.device}"
            ) from error
        told(1.0)
        network = returned if isinstance(returned, nn.Module) else model
        self._check(network, before, form)
        return network

    def _line_of(self, error: BaseException) -> str:
        """Where in the file it was raised, in words."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).resolve() == self.file.resolve()]
        return f" (line {own[-1].lineno} of {self.file.name})" if own else ""

    def _check(self, network: nn.Module, before: str, form: dict[str, tuple[int, ...]]) -> None:
        """Check that the function did what it is for.

        Raises:
            InputError: it did not.
        """
        after = _form(network)
        if after != form:
            wrong = sorted(set(form.items()) ^ set(after.items()))[0][0]
            raise InputError(
                f"recipe {self.title}: the network afterwards is another one than it was given, they differ in "
                f"{wrong!r}: train the weights of that one in place, or return one of the same architecture"
            )
        state = dict(network.state_dict())
        if digest({name: value.cpu() for name, value in state.items()}) == before:
            raise InputError(
                f"recipe {self.title}: every weight is as it was before: train the network in place, or return it"
            )
        broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise InputError(
                f"recipe {self.title}: {broken[0]!r} holds NaN or infinite values afterwards, so the training "
                "diverged: a lower learning rate may help, or samples of another scale"
            )


def _form(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@contextmanager
def _also_seeded(device: torch.device, lesson: Lesson) -> Iterator[None]:
    """Torch's generator on the device, for dropout there; that of the CPU is seeded by whoever builds the network."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed_of(lesson.seed, "recipe", lesson.name, lesson.permuted))
        yield


def own_recipe(text: str, base: Path, device: torch.device) -> OwnRecipe:
    """The recipe that FILE.py:FUNCTION names.

    Args:
        text: as the study has it.
        base: what the path is relative to.
        device: where to train.

    Raises:
        InputError: no such file, an error in it, no such function in it, or one that takes other arguments.
    """
    path, _, name = text.rpartition(":")
    if not path:
        raise InputError(f"recipe {text}: expected FILE.py:FUNCTION, such as train.py:train")
    file = existing(base / path)
    module = load_file(file)
    function = getattr(module, name, None)
    if not callable(function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise InputError(f"recipe {text}: {path} has no function {name!r}; {nearest(name, known)}")
    parameters = signature(function)
    try:
        parameters.bind(None, None, None, **{each: None for each in OFFERED if each in parameters.parameters})
    except TypeError as error:
        raise InputError(
            f"recipe {text}: it is called as {name}(model, x, y), with {', '.join(OFFERED)} by keyword if it has them, "
            f"and is {name}{parameters}: {error}"
        ) from None
    return OwnRecipe(text, function, file, device)
