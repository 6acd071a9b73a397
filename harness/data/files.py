"""Samples that are files: which there are, what each is called, and which class it belongs to."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from harness.data import Data
from harness.registry import nearest
from harness.space import InputSpace
from harness.types import InputError

Broken = Literal["refuse", "skip"]


def existing(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        InputError: it is not.
    """
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}")
    return path


def files_below(folder: Path, extensions: Sequence[str], name: str) -> list[str]:
    """The files with one of these extensions, at any depth, as sorted paths relative to the folder.

    Raises:
        InputError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"{name}: no folder {str(folder)!r}")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in extensions and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise InputError(f"{name}: no file in {str(folder)!r} ends in {', '.join(extensions)}")
    return found


def labels_of(
    files: Sequence[str], labels: str, label: str, base: Path, classes: list[str] | None, name: str
) -> tuple[Int[Tensor, " n"] | None, tuple[str, ...]]:
    """The class of each file, and the names of the classes.

    Args:
        files: paths relative to the folder.
        labels: a CSV file with the column `file`; a regular expression whose first group is the class, searched
            in the path; or nothing: then the class is the subfolder, and without subfolders there are none.
        label: the column of the CSV file with the class.
        base: what the path of the CSV file is relative to.
        classes: the names of all classes by index; by default those that occur, sorted.
        name: of the data, for messages.

    Raises:
        InputError: a file has no class, or one that is not among the known ones.
    """
    if not labels:
        if not all("/" in file for file in files):
            return None, tuple(classes or ())
        return class_indices([file.partition("/")[0] for file in files], name, classes)
    if labels.endswith(".csv"):
        found = _from_csv(existing(base / labels), label, name)
        missing = [file for file in files if file not in found]
        if missing:
            raise InputError(f"{name}: {labels} has no row for {missing[0]!r} ({len(missing)} files lack one)")
        return class_indices([found[file] for file in files], name, classes)
    try:
        matches = [re.search(labels, file) for file in files]
    except re.error as error:
        raise InputError(
            f"{name}: labels: {labels!r} is neither a CSV file nor a regular expression: {error}"
        ) from None
    groups = [match[1] if match and match.re.groups else None for match in matches]
    if None in groups:
        file = files[groups.index(None)]
        raise InputError(f"{name}: labels: no class for {file!r}: {labels!r} needs one group that matches")
    numbers = all(str(group).isdigit() for group in groups) and not classes
    return class_indices([int(str(group)) if numbers else group for group in groups], name, classes)


def _from_csv(path: Path, label: str, name: str) -> dict[str, Any]:
    table = pd.read_csv(path)
    for column in ("file", label):
        if column not in table:
            raise InputError(
                f"{name}: {path.name} has no column {column!r}; {nearest(column, map(str, table.columns))}"
            )
    return dict(zip(table["file"].astype(str), table[label].tolist(), strict=True))


def class_indices(
    labels: list[object], name: str, known: list[str] | None = None
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """The class index of each label, and the names of the classes: integers are indices, names are sorted.

    Args:
        labels: integers, or names.
        name: of the data, for messages.
        known: the names of all classes by index, if somebody knows better than the alphabet.

    Raises:
        InputError: a name is not among the known ones.
    """
    if not known and all(isinstance(label, (int, np.integer)) for label in labels):
        return torch.tensor([int(label) for label in labels], dtype=torch.int64), ()  # type: ignore[call-overload]
    names = tuple(known) if known else tuple(sorted({str(label) for label in labels}))
    index = {each: position for position, each in enumerate(names)}
    strangers = sorted({str(label) for label in labels} - set(index))
    if strangers:
        raise InputError(f"{name}: the class {strangers[0]!r} is not among `classes`; {nearest(strangers[0], names)}")
    return torch.tensor([index[str(label)] for label in labels], dtype=torch.int64), names


def of_files(
    scheme: str,
    path: str,
    extensions: Sequence[str],
    space: InputSpace,
    decode: Callable[[Path], Tensor],
    *,
    base: Path,
    labels: str,
    label: str,
    classes: list[str] | None,
    train: str,
    held_out: str,
    broken: Broken,
) -> Data:
    """The files in a folder as data that are decoded when they are read.

    Args:
        scheme: name of the source.
        path: of the folder.
        extensions: of the files, in lower case.
        space: what the numbers mean.
        decode: file -> sample.
        base: what paths are relative to.
        labels: where classes come from; see `labels_of`.
        label: the column of the CSV file with the class.
        classes: the names of all classes by index.
        train: another folder, with the training part.
        held_out: a regular expression; files whose path it matches are explained, the others are trained on.
        broken: whether a file that cannot be read is skipped or refused.

    Raises:
        InputError: no files, no classes where there must be some, or `held_out` matches no file or all of them.
    """
    name = f"{scheme}:{path}"
    files = files_below(base / path, extensions, name)
    y, names = labels_of(files, labels, label, base, classes, name)

    def part(rows: list[int], train: Data | None) -> Data:
        ids = [files[row] for row in rows]
        chosen = None if y is None else y[torch.tensor(rows, dtype=torch.int64)]
        return Data(
            name, space, ids, chosen, lambda row: decode(base / path / ids[row]), names, train, broken == "skip"
        )

    if held_out:
        matches = [bool(re.search(held_out, file)) for file in files]
        if train or all(matches) or not any(matches):
            what = "stands beside `train`" if train else f"matches {'every' if matches[0] else 'no'} file"
            raise InputError(f"{name}: held_out: {held_out!r} {what}")
        inside, outside = ([row for row, match in enumerate(matches) if match is wanted] for wanted in (True, False))
        return part(inside, part(outside, None))
    rest = None
    if train:
        rest = of_files(
            scheme,
            train,
            extensions,
            space,
            decode,
            base=base,
            labels=labels,
            label=label,
            classes=list(names) or None,
            train="",
            held_out="",
            broken=broken,
        )
    return part(list(range(len(files))), rest)
