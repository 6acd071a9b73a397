"""What is registered: the entries, their claims, and the options that they take."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

FILLED_BY_NAME: tuple[Literal["baseline"], Literal["fill"]] = ("baseline", "fill")
"""Options that a study gives by name ("black", "blur") and that the input space resolves."""

GLOBAL = "global"
"""The family of introspections, and of the metrics that ask them and not maps."""

FILLED = ("space", "background", "draws", "masks", "chunk", "ids", "base", "preprocessing")
"""Options that a study cannot give: the harness supplies the object."""


class UnknownNameError(KeyError):
    """A name that is not registered; the message lists the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


class OptionError(ValueError):
    """An option that does not exist or has a value of the wrong type. `option` names it."""

    def __init__(self, option: str, message: str) -> None:
        super().__init__(message)
        self.option = option


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the names that `name` may have meant, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names) or 'none'}"


@dataclass(frozen=True)
class Entry:
    """What both kinds of entries share. `function` is the registered function itself."""

    name: str
    function: Callable[..., Any]
    family: str
    version: int
    needs: tuple[str, ...]
    filled: ClassVar[tuple[str, ...]] = FILLED

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the function, filled ones included."""
        signature = inspect.signature(self.function, eval_str=True)
        return {name: p for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}

    @cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options that a study may set."""
        return {name: p for name, p in self.parameters.items() if name not in self.filled}

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @cached_property
    def _schema(self) -> type[BaseModel]:
        fields: dict[str, Any] = {
            name: (str, "") if name in FILLED_BY_NAME else (p.annotation, p.default) for name, p in self.options.items()
        }
        config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
        return create_model(self.name, __config__=config, **fields)

    def accepts_list(self, option: str) -> bool:
        """Whether a list is a value of this option (it then does not expand into several entries)."""
        annotation = str(self.options[option].annotation) if option in self.options else ""
        return option not in FILLED_BY_NAME and any(kind in annotation for kind in ("list", "tuple", "Sequence"))

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check the given options against the signature and add the defaults.

        A named fill that is not given stays absent: its default depends on the input space.

        Raises:
            OptionError: an unknown option, or a value of the wrong type.
        """
        for option in given:
            if option not in self.options:
                raise OptionError(option, f"{self.name} has no option {option!r}; {nearest(option, self.options)}")
        for option, parameter in self.options.items():
            if parameter.default is parameter.empty and option not in (*given, *FILLED_BY_NAME):
                raise OptionError(option, f"{self.name} needs the option {option!r}, which has no default")
        try:
            checked = self._schema(**given)
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0])
            annotation = self.options[option].annotation
            plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
            wanted = getattr(plain, "__name__", str(plain))
            message = f"{self.name}: option {option!r} expects {wanted}, got {first['input']!r}: {first['msg']}"
            raise OptionError(option, message) from None
        values = {name: getattr(checked, name) for name in self.options}
        return {name: value for name, value in values.items() if name not in FILLED_BY_NAME or value != ""}


@dataclass(frozen=True)
class Method(Entry):
    """An attribution method with its claims.

    Attributes:
        cite: a key of references.bib, empty for controls.
        conserves: what the map sums to by the method's own claim: the explained output, the output's
            difference to the baseline's, or nothing.
        conserves_if: whether the method claims that with these options (all of them, defaults included).
        stochastic: whether a new call gives a new map.
        expected: for controls, the verdict that each named metric must reach.
        fixed: whether the maps were made elsewhere, for the trained model, the samples and the targets of the study,
            so that there are none for anything else.
        contents: a hash or version of what else its maps depend on, such as a file or a library; empty if nothing.
        refusal: why it has no maps for samples with these ids, targets and shape, or empty; asked before anything is
            computed.
    """

    cite: str = ""
    conserves: Literal["output", "difference"] | None = None
    stochastic: bool = False
    expected: Mapping[str, str] = field(default_factory=dict)
    conserves_if: Callable[[Mapping[str, Any]], bool] = lambda _: True
    fixed: bool = False
    contents: str = ""
    refusal: Callable[[Sequence[str], Any, tuple[int, ...]], str] = lambda *_: ""


Side = Literal["higher", "lower", "alike"]
"""On which side of networks that have learnt nothing the trained one stands; `alike`: how much they are alike."""


@dataclass(frozen=True)
class Introspection(Method):
    """A technique that asks what a network has learnt, not why it decides as it does. It has no maps.

    Attributes:
        compares: measure -> on which side of networks that have learnt nothing a trained one is to stand, the headline
            first. Of each there is a score without a stage, and there may be one for each layer. A measure that is
            `alike` is 1 for the trained network: how much of what is seen is the same in the other.
        uses: what it makes use of where there is such a thing; see `Metric`.
        question: what it answers, in a sentence.
        misleads: when what it shows says something else than it seems to.
    """

    compares: Mapping[str, Side] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    question: str = ""
    misleads: str = ""
    filled: ClassVar[tuple[str, ...]] = ("seed", "source", "chunk", "reference")

    @property
    def headline(self) -> str:
        """The measure that stands for it in a wide table."""
        return next(iter(self.compares))


@dataclass(frozen=True)
class Metric(Entry):
    """A test of explanations.

    Attributes:
        cite: a key of references.bib; empty for what is ours.
        question: what it answers, in a sentence.
        misleads: when its number says something else than it seems to.
        direction: whether higher or lower values of the headline are better; None for descriptors.
        headline: the measure that stands for the metric in a wide table.
        summary_statistic: how its samples are summarised there; the median where tails are long.
        chance: the expected headline of a map of pure noise, where theory says it; None where it does not.
        uses: what it makes use of where there is such a thing, and does without elsewhere (`needs` is for the rest).
    """

    direction: Literal["higher", "lower"] | None = None
    headline: str = ""
    summary_statistic: Literal["mean", "median"] = "mean"
    uses: tuple[str, ...] = ()
    cite: str = ""
    question: str = ""
    misleads: str = ""
    chance: float | None = None


@dataclass(frozen=True)
class SourceEntry(Entry):
    """Where data or models come from. In a study: `name`, or `name:argument`.

    Attributes:
        argument: what stands after the colon, such as PATH; empty where nothing does.
        passes_on: whether the argument is another source of the same kind, which is given all options that are not
            this one's own.
        inner: that other source, once the argument is known.
    """

    argument: str = ""
    passes_on: bool = False
    inner: "SourceEntry | None" = None
    filled: ClassVar[tuple[str, ...]] = ("base", "preprocessing")

    @cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options that a study may set, those of the inner source included."""
        own = {name: p for name, p in self.parameters.items() if name not in self.filled}
        return own | (self.inner.options if self.inner else {})

    @property
    def usage(self) -> str:
        """How it is written in a study."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    def load(self, argument: str, options: Mapping[str, Any], **filled: Any) -> Any:
        """What the function makes of its argument and options, and of what it wants filled in."""
        wanted = {name: value for name, value in filled.items() if name in self.parameters}
        return self.function(*([argument] if self.argument else []), **options, **wanted)
