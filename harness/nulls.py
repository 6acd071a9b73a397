"""How alike two maps are that have nothing to do with each other: `python -m harness.nulls` prints the table.

A level of SSIM or HOG means nothing without it. For iid maps of heavy tails, scaling to [0, 1] alone gives SSIM 0.6;
for maps that share an input as a factor, as in input times gradient, the rank correlation of absolute values is near 1.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import interpolate

from harness.data.bundled import mnist_5k
from harness.metrics.preprocessing import min_max, percentile_clip
from harness.metrics.similarity import spearman
from harness.metrics.structure import hog, ssim
from harness.random import Draws

PAIRS, CHUNK = 200, 20
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

Maps = Float[Tensor, "n h w"]
Pair = tuple[Maps, Maps]


def gaussian(draws: Draws, draw: int, side: int) -> Maps:
    """Independent standard normal pixels."""
    return draws.normal(side, side, draw=draw)


def student(draws: Draws, draw: int, side: int) -> Maps:
    """Independent pixels of Student's t distribution with three degrees of freedom: heavy tails."""
    values = draws.normal(4, side, side, draw=draw)
    return values[:, 0] / values[:, 1:].square().mean(1).sqrt()


def blurred(draws: Draws, draw: int, side: int, sigma: float) -> Maps:
    """Gaussian pixels under a Gaussian filter, on the torus."""
    maps = gaussian(draws, draw, side).numpy()
    return torch.from_numpy(gaussian_filter(maps, sigma, mode="wrap", axes=(1, 2)))


def coarse(draws: Draws, draw: int, side: int) -> Maps:
    """The positive part of 7 x 7 noise, enlarged bilinearly from corner to corner, as a class activation map is."""
    noise = gaussian(draws, draw, 7).relu()[:, None]
    return interpolate(noise, size=(side, side), mode="bilinear", align_corners=True)[:, 0]


def digits(draws: Draws, start: int, mean: float, std: float) -> Pair:
    """Two noises, each times the same MNIST digit: what input times gradient is where gradients are unrelated."""
    pictures = (mnist_5k().batch(range(start, start + len(draws.samples)))[:, 0].double() - mean) / std
    return gaussian(draws, 0, 28) * pictures, gaussian(draws, 1, 28) * pictures


def independent(maker: Callable[..., Maps], *arguments: int | float) -> Callable[[Draws, int], Pair]:
    """Pairs of two draws of one kind of noise."""
    return lambda draws, start: (maker(draws, 0, *arguments), maker(draws, 1, *arguments))


ROWS: Mapping[str, Callable[[Draws, int], Pair]] = {
    "iid Gaussian, 28": independent(gaussian, 28),
    "iid Student-t3, 28": independent(student, 28),
    "Gaussian blurred s=2, 28": independent(blurred, 28, 2.0),
    "iid Gaussian, 224": independent(gaussian, 224),
    "iid Student-t3, 224": independent(student, 224),
    "Gaussian blurred s=8, 224": independent(blurred, 224, 8.0),
    "ReLU(7x7 noise) bilinear to 224": independent(coarse, 224),
    "noise * MNIST digit in [0, 1]": lambda draws, start: digits(draws, start, 0.0, 1.0),
    "noise * MNIST digit, standardized": lambda draws, start: digits(draws, start, MNIST_MEAN, MNIST_STD),
}


def similarities(a: Maps, b: Maps) -> dict[str, Float[Tensor, " n"]]:
    """The columns of the table for each pair. HOG has cells of 7 pixels at 28 x 28, where `compare` takes 9."""
    a, b = a.float(), b.float()
    scaled, clipped = (min_max(a), min_max(b)), (percentile_clip(a.abs()), percentile_clip(b.abs()))
    usual = hog(*scaled)
    return {
        "Spearman signed": spearman(a, b),
        "Spearman absolute": spearman(a.abs(), b.abs()),
        "SSIM min-max, range 1": ssim(*scaled, data_range=1.0),
        "SSIM min-max, range 2": ssim(*scaled, data_range=2.0),
        "SSIM absolute p99, range 1": ssim(*clipped, data_range=1.0),
        "HOG": hog(*scaled, pixels_per_cell=7) if a.shape[1] == 28 else usual,
        "HOG, cells of compare": usual,
    }


def null(row: str, pairs: int = PAIRS) -> pd.DataFrame:
    """Mean, standard deviation and standard error of each similarity over independent pairs of one row.

    Args:
        row: a key of `ROWS`.
        pairs: how many.
    """
    draws = Draws.of([f"pair/{pair}" for pair in range(pairs)], "nulls", row)
    chunks = []
    for start in range(0, pairs, CHUNK):
        found = similarities(*ROWS[row](draws[start : start + CHUNK], start))
        chunks.append(pd.DataFrame({measure: values.numpy() for measure, values in found.items()}))
    values = pd.concat(chunks)
    table = pd.DataFrame({"mean": values.mean(), "sd": values.std(), "pairs": pairs})
    table["standard_error"] = table["sd"] / pairs**0.5
    return table.rename_axis("similarity").reset_index().assign(maps=row)


def markdown(table: pd.DataFrame) -> str:
    """One line for each kind of maps, one column for each similarity: mean ± standard error (standard deviation)."""
    columns = list(dict.fromkeys(table["similarity"]))
    lines = [f"| independent maps | pairs | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 2)}"]
    for row, part in table.groupby("maps", sort=False):
        by = part.set_index("similarity")
        cells = [by.loc[column] for column in columns]
        texts = [f"{cell['mean']:.3f} ± {cell['standard_error']:.3f} ({cell['sd']:.3f})" for cell in cells]
        lines.append(f"| {row} | {by['pairs'].iloc[0]} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, and write it as CSV and Markdown where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m harness.nulls", description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=PAIRS, help="independent pairs of maps a row")
    parser.add_argument("--out", type=Path, help="a folder for nulls.csv and nulls.md")
    arguments = parser.parse_args()
    if not 2 <= arguments.pairs <= len(mnist_5k()):
        parser.error(f"--pairs: expected 2 to {len(mnist_5k())}, a digit for each, got {arguments.pairs}")
    table = pd.concat([null(row, arguments.pairs) for row in ROWS], ignore_index=True)
    text = markdown(table)
    print(text, end="")
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        columns = ["maps", "similarity", "mean", "sd", "standard_error", "pairs"]
        table[columns].to_csv(arguments.out / "nulls.csv", index=False, float_format="%.5f")
        (arguments.out / "nulls.md").write_text(text)


if __name__ == "__main__":
    main()
