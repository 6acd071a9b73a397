"""Speed in one run: every method and metric against the bare model, and against quantus and captum where installed.

`make bench` runs it. The floor of work is the number of its forward and backward sample-passes times what the bare
eager model needs for one at its best batch size. Seconds are of one machine; compare ratios.
"""

import argparse
import sys
import time
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import bench_captum
import bench_large
import bench_ours
import bench_quantus
from bench_floor import BATCHES, Floor, hardware, markdown, network, pictures
from harness.preparation import torch_device

RESULTS = Path(__file__).parents[1] / "results"
TABLES = {
    "methods": ("Methods", "", bench_ours.methods_table),
    "metrics": ("Metrics", "", bench_ours.metrics_table),
    "curves": ("Pixel flipping and quantus", "quantus", bench_quantus.curves_table),
    "cascades": ("Parameter randomization and quantus", "quantus", bench_quantus.cascades_table),
    "study": ("A study of 10 methods and 8 metrics, and quantus", "quantus", bench_quantus.study_table),
    "captum": ("Methods and captum", "captum", bench_captum.captum_table),
    "rules": ("Backward rules at 224 x 224", "", bench_large.rules_table),
    "perturbation": ("Perturbation at 224 x 224", "", bench_large.perturbation_table),
}
"""Name -> title, the library it needs, and (floor, model, x, quick) -> a table and what it leaves out, with why."""


def parsed(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda; cpu by default")
    parser.add_argument("--samples", type=int, help="64 by default, 8 if --quick")
    parser.add_argument("--weights", help="safetensors of the ResNet-20; random ones by default")
    parser.add_argument("--images", help="a folder of pictures of 32 x 32, in any depth; made ones by default")
    parser.add_argument(
        "--out", type=Path, help="results/reference/benchmarks by default, results/benchmarks if --quick"
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples, methods and steps: does it run at all?")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE", help=str([*TABLES]))
    return parser.parse_args(arguments)


def main():
    arguments = parsed()
    warnings.simplefilter("ignore")
    started, device = time.perf_counter(), torch_device(arguments.device)
    model = network(arguments.weights).to(device)
    x = pictures(arguments.samples or (8 if arguments.quick else 64), arguments.images).to(device)
    bench_ours.warm_up(model, x)
    floor = Floor(model, x, (4,) if arguments.quick else BATCHES, arguments.quick)
    published = RESULTS / ("benchmarks" if arguments.quick else "reference/benchmarks")
    folder = (arguments.out or published) / device.type
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(folder / "README.md")
    report.add(f"# Benchmarks: {hardware(device)}\n\n{setting(arguments, x, floor)}")
    for name in arguments.only:
        title, library, table = TABLES[name]
        if library and not find_spec(library):
            report.add(f"## {title}\n\nNot run: {library} is not installed (extra `bench`).")
            continue
        frame, left_out = table(floor, model, x, arguments.quick)
        frame.to_csv(folder / f"{name}.csv", index=False)
        heading = f"{title} {version(library)}" if library else title
        report.add(f"## {heading}\n\n{markdown(frame)}")
        if left_out:
            report.add("Left out: " + "; ".join(f"`{what}` ({why})" for what, why in left_out.items()) + ".")
    print(f"{time.perf_counter() - started:.0f} seconds; written to {folder}", file=sys.stderr)


def setting(arguments, x, floor):
    """What was measured, and how fast the bare model is."""
    forward, both = floor.first
    weights = "weights of a file" if arguments.weights else "random weights"
    images = "pictures of a folder" if arguments.images else "made pictures"
    return (
        f"ResNet-20 for CIFAR-10, {weights}, {len(x)} {images} of 32 x 32, float32. The bare model: {1 / forward:,.0f} "
        f"forward passes a second (batches of {floor.batch['forward']}), {1 / both:,.0f} forward and backward ones "
        f"(batches of {floor.batch['both']})."
    )


class Report:
    """Paragraphs that are printed and written as soon as they are known."""

    def __init__(self, path):
        self.path, self.paragraphs = path, []

    def add(self, paragraph):
        print(paragraph, end="\n\n", flush=True)
        self.paragraphs.append(paragraph)
        self.path.write_text("\n\n".join(self.paragraphs) + "\n")


if __name__ == "__main__":
    main()
