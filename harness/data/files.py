"""Samples that are files: which there are, what each is called, and which class it belongs to."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from harness.data import Data
from harness.entries import nearest
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

    Links are followed, what is hidden is left out.

    Raises:
        InputError: no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"{name}: no folder {str(folder)!r}")
    found: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        above = {each.resolve() for each in (here, *here.parents)}  # a link to one of them is a circle
        folders[:] = [each for each in folders if each[0] != "." and (here / each).resolve() not in above]
        paths = (here / file for file in files if file[0] != ".")
        found += [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in extensions]
    if not found:
        raise InputError(f"{name}: no file in {str(folder)!r} ends in {', '.join(extensions)}")
    return sorted(found)


def read_table(path: Path, name: str, text: Sequence[str]) -> pd.DataFrame:
    """A CSV file, in which these columns stay the text that they are: a class may be called NA, or 01.

    Raises:
        InputError: no such file, or not a CSV file.
    """
    try:
        with warnings.catch_warnings():
            # With a field too many in each row, pandas would cut it off or shift the columns.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(existing(path), dtype=dict.fromkeys(text, str), na_filter=False, index_col=False)
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: {path.name} is no CSV file with as many fields in each row: {error}") from None


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
        return class_indices([file.partition("/")[0] for file in files], name, classes, numbers=False)
    if labels.endswith(".csv"):
        found = _from_csv(base / labels, label, name)
        missing = [file for file in files if not found.get(file)]
        if missing:
            raise InputError(f"{name}: {labels} has no class for {missing[0]!r} ({len(missing)} files lack one)")
        return class_indices([found[file] for file in files], name, classes)
    try:
        matches = [re.search(labels, file) for file in files]
    except re.error as error:
        raise InputError(
            f"{name}: labels: {labels!r} is neither a CSV file nor a regular expression: {error}"
        ) from None
    groups = [(match[1] or "") if match and match.re.groups else "" for match in matches]
    if "" in groups:
        file = files[groups.index("")]
        raise InputError(f"{name}: labels: no class for {file!r}: {labels!r} needs one group that matches")
    return class_indices(groups, name, classes)


def _from_csv(path: Path, label: str, name: str) -> dict[str, str]:
    table = read_table(path, name, ["file", label])
    for column in ("file", label):
        if column not in table:
            raise InputError(
                f"{name}: {path.name} has no column {column!r}; {nearest(column, map(str, table.columns))}"
            )
    pairs = table[["file", label]].drop_duplicates()
    twice = pairs["file"][pairs["file"].duplicated()].tolist()
    if twice:
        raise InputError(f"{name}: {path.name} has two classes for {twice[0]!r}")
    return dict(zip(pairs["file"], pairs[label], strict=True))


def class_indices(
    labels: Sequence[str], name: str, known: list[str] | None, *, numbers: bool = True
) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """The class index of each label, and the names of the classes.

    Args:
        labels: as they are written.
        name: of the data, for messages.
        known: the names of all classes by index; by default those that occur, sorted.
        numbers: whether labels that are all numbers, without known names, are the indices.

    Raises:
        InputError: a label is empty, a fraction, or not one of the known names.
    """
    if "" in labels:
        raise InputError(f"{name}: the label in row {labels.index('')} is empty")
    indices = _integers(labels, name) if numbers and not known else None
    if indices is not None:
        return torch.tensor(indices, dtype=torch.int64), ()
    names, occurring = tuple(known or sorted(set(labels))), sorted(set(labels))
    for each in occurring:
        if names.count(each) != 1:
            what = "stands twice in" if each in names else "is not among"
            raise InputError(f"{name}: the class {each!r} {what} `classes`; {nearest(each, names)}")
    index = {each: position for position, each in enumerate(names)}
    return torch.tensor([index[label] for label in labels], dtype=torch.int64), names


def _integers(labels: Sequence[str], name: str) -> list[int] | None:
    """These labels as integers; None if they are names.

    Raises:
        InputError: they are numbers, but no integers.
    """
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return None
    for label, number in zip(labels, numbers, strict=True):
        if not number.is_integer():
            raise InputError(f"{name}: a label is an integer or the name of a class, got {label}")
    return [int(number) for number in numbers]


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
        InputError: no files, no classes where there must be some, a file that is in both parts for all that its
            label says, or `held_out` matches no file or all of them.
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
        try:
            matches = [bool(re.search(held_out, file)) for file in files]
        except re.error as error:
            raise InputError(f"{name}: held_out: {held_out!r} is no regular expression: {error}") from None
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
        both = sorted(set(files) & set(rest.ids))
        if both and labels.endswith(".csv"):
            raise InputError(f"{name}: {labels} cannot tell {both[0]!r} here from {both[0]!r} in {train!r}")
    return part(list(range(len(files))), rest)
