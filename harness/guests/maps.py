"""Maps that were computed elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.digests import digest
from harness.entries import Method, nearest
from harness.guests.wrapping import filled, guest
from harness.registry import method_source
from harness.types import InputError

NAMED = 3


@method_source(argument="FILE.npz")
def maps(path: str, *, base: Path) -> Method:
    """Maps of a file for the samples and targets of a study: what needs maps of another model does not apply.

    The file holds the arrays `maps` [n, ...] (in the shape of the inputs, or one channel) and `ids` [n], the ids of
    the samples as strings, and it may hold `target` [n], the explained class of each, to be compared with the study's.

    Args:
        path: of the .npz file.
        base: what it is relative to.

    Raises:
        InputError: no such file, or the arrays are not of this kind.
    """
    known = _read(f"maps:{path}", base / path)
    method = guest(
        known.name,
        known.maps_of,
        [filled("ids", Sequence[str])],
        family="maps",
        contents=digest(known.maps, list(known.rows), known.target),
        summary=f"Maps of {path}.",
    )
    return replace(method, fixed=True, refusal=known.refusal)


@dataclass(frozen=True)
class _Maps:
    """The maps of a file.

    Attributes:
        name: of the method.
        maps: one for each id.
        rows: where that of an id is.
        target: the class that each explains, if the file says it.
    """

    name: str
    maps: Float[Tensor, "n ..."]
    rows: dict[str, int]
    target: Int[Tensor, " n"] | None

    def maps_of(
        self, model: nn.Module, x: Float[Tensor, "m *shape"], target: Int[Tensor, " m"], *, ids: Sequence[str]
    ) -> Float[Tensor, "m ..."]:
        """Those of these samples.

        Raises:
            InputError: there are none, or they explain another class.
        """
        reason = self.refusal(ids, target, tuple(x.shape[1:]))
        if reason:
            raise InputError(reason)
        return self.maps[[self.rows[each] for each in ids]].to(x)

    def refusal(self, ids: Sequence[str], target: Int[Tensor, " m"], shape: tuple[int, ...]) -> str:
        """Why there are no maps for inputs of this shape with these ids and targets; empty if there are."""
        one_channel = (1, *shape[1:]) if len(shape) > 1 else shape
        if self.maps.shape[1:] not in (shape, one_channel):
            return (
                f"{self.name}: expected maps of shape {list(shape)} or one channel, {list(one_channel)}, "
                f"got {list(self.maps.shape[1:])}"
            )
        missing = [each for each in ids if each not in self.rows]
        if missing:
            return (
                f"{self.name}: no map of sample {missing[0]} ({len(missing)} of {len(ids)}); {self._near(missing[0])}"
            )
        if self.target is None:
            return ""
        explained = self.target[[self.rows[each] for each in ids]].tolist()
        for each, theirs, ours in zip(ids, explained, target.tolist(), strict=True):
            if theirs != ours:
                return f"{self.name}: the map of sample {each} explains class {theirs}, the study class {ours}"
        return ""

    def _near(self, sample: str) -> str:
        # Not `nearest`: where nothing is near, it would list every sample.
        close = get_close_matches(sample, self.rows, n=NAMED, cutoff=0.5)
        return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join([*self.rows][:NAMED])}, ..."


def _read(name: str, path: Path) -> _Maps:
    """The maps of a file.

    Raises:
        InputError: there is no such file, or its arrays do not fit.
    """
    if not path.is_file():
        raise InputError(f"{name}: no file {path}")
    try:
        file = np.load(path, allow_pickle=False)
        arrays = {each: file[each] for each in file.files}
    except (AttributeError, BadZipFile, EOFError, OSError, ValueError) as error:
        raise InputError(f"{name}: no .npz file with the arrays maps and ids: {error}") from None
    for each in ("maps", "ids"):
        if each not in arrays:
            raise InputError(f"{name}: the array {each!r} is missing; {nearest(each, arrays)}")
    values, ids, target = arrays["maps"], arrays["ids"], arrays.get("target")
    if values.dtype.kind != "f" or values.ndim < 2:
        raise InputError(
            f"{name}: expected maps as floating-point numbers of shape [n, ...], got "
            f"{values.dtype} {list(values.shape)}"
        )
    if ids.dtype.kind != "U" or ids.shape != (len(values),):
        raise InputError(f"{name}: expected ids as {len(values)} strings, got {ids.dtype} {list(ids.shape)}")
    if target is not None and (target.dtype.kind not in "iu" or target.shape != ids.shape):
        raise InputError(f"{name}: expected target as {len(ids)} integers, got {target.dtype} {list(target.shape)}")
    rows = {str(each): row for row, each in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(str(each) for row, each in enumerate(ids) if rows[str(each)] != row)
        raise InputError(f"{name}: two maps of sample {twice}")
    broken = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if broken.any():
        raise InputError(f"{name}: the map of sample {ids[broken.argmax()]} holds NaN or infinite values")
    classes = None if target is None else torch.from_numpy(target.astype(np.int64))
    return _Maps(name, torch.from_numpy(values), rows, classes)
