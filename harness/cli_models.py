"""The part of the command line that is about a model, before there is a study: examine it, start one, see its maps."""

from pathlib import Path
from typing import Annotated

import typer

from harness.terminal import Device, console, print_table, tell_diagnosis, warnings_told
from harness.types import InputError

app = typer.Typer()


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="a model source or a study (.yaml)")],
    data: Annotated[str | None, typer.Argument(help="a data source or a path [default: noise]")] = None,
    weights: Annotated[str | None, typer.Option(help="a file, or a name that the source knows")] = None,
    samples: Annotated[int, typer.Option(help="how many samples to examine")] = 64,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Examine a model and its data: what it is, what it costs, which methods apply, what makes results wrong.

    Examples: `harness doctor mnist-cnn`, `harness doctor file:net.py:build photos --weights w.safetensors`,
    `harness doctor my.yaml`. Sources may be YAML mappings: '{source: folder:photos, resize: 256, crop: 224, ...}'.

    Exit codes: 0 nothing found; 1 findings; 2 wrong input.
    """
    from harness.arguments import entry_of
    from harness.doctor import examine_entry
    from harness.preparation import torch_device
    from harness.progress import bars
    from harness.study import load_study

    place, base = torch_device(device), Path.cwd()
    assumed: list[str] = []
    if model.endswith((".yaml", ".yml")):
        resolved = load_study(model)
        entries, base = resolved.models, resolved.base
    else:
        entry, assumed = entry_of(model, data, weights, base)
        entries = (entry,)
    found = 0
    for each in entries:
        with bars(console) as progress:
            diagnosis = examine_entry(each, base, samples=samples, device=place, assumed=assumed, progress=progress)
        tell_diagnosis(diagnosis)
        found += len(diagnosis.findings)
    raise typer.Exit(1 if found else 0)


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="a model source, such as file:net.py:build")],
    data: Annotated[str, typer.Argument(help="a data source, or the path of a folder, .npz or .csv")],
    weights: Annotated[str | None, typer.Option(help="a file, or a name that the source knows")] = None,
    out: Annotated[Path, typer.Option(help="the study to write")] = Path("study.yaml"),
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Write a study for a model and data of your own, with comments, ready to run within minutes.

    Examples: `harness init file:net.py:build photos --weights w.safetensors`, then `harness run study.yaml`;
    `harness init torchvision:resnet50 photos --weights IMAGENET1K_V2 --out resnet.yaml`,
    `harness init mlp '{source: csv:table.csv, held_out: test}'`. Sources may be YAML mappings:
    '{source: folder:photos, broken: skip, resize: 256, crop: 224, ...}'.

    Exit codes: 0 written; 2 wrong input.
    """
    from harness.init import init_study
    from harness.preparation import torch_device
    from harness.progress import bars

    if out.exists():
        raise InputError(f"{out} exists already: name another file with --out")
    base = Path.cwd()
    if out.parent.resolve() != base.resolve():
        raise InputError("paths in a study are relative to it: write it into the folder you are in")
    with bars(console) as progress:
        text = init_study(model, data, weights, out.stem, base, device=torch_device(device), progress=progress)
    out.write_text(text)
    console.print(text, markup=False)
    console.print(f"written to {out}; run it: harness run {out}", markup=False)


@app.command()
def applicability(
    models: Annotated[list[str] | None, typer.Argument(help="model sources [default: the built-in ones]")] = None,
    out: Annotated[Path | None, typer.Option(help="a folder to write the table to as CSV and Markdown")] = None,
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
) -> None:
    """Print which method applies to which model, and if not, why; with the completeness residual where one is claimed.

    Each model has random weights and gets noise of both signs: applicability depends on neither.

    Examples: `harness applicability`, `harness applicability vit torchvision:resnet50 file:net.py:build`,
    `harness applicability mnist-cnn --out applies`.
    """
    from harness.doctor import applicability_of
    from harness.preparation import torch_device
    from harness.progress import bars
    from harness.text import markdown

    with bars(console) as progress:
        frame = applicability_of(models or [], Path.cwd(), device=torch_device(device), progress=progress)
    print_table(frame, "applicability")
    if out:
        out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out / "applicability.csv", index=False)
        (out / "applicability.md").write_text(markdown(frame))


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="a model source")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="pictures, or one data source [default: the model's own data]"),
    ] = None,
    methods: Annotated[list[str] | None, typer.Option(help="names, or YAML mappings [default: all]")] = None,
    weights: Annotated[str | None, typer.Option(help="a file, or a name that the source knows")] = None,
    data: Annotated[str | None, typer.Option(help="a YAML mapping: how pictures become inputs, and the like")] = None,
    target: Annotated[str, typer.Option(help="predicted, label, runner_up or a class index")] = "predicted",
    samples: Annotated[int | None, typer.Option(min=1, help="how many [default: all pictures, 2 of a source]")] = None,
    out: Annotated[Path, typer.Option(help="the picture to write")] = Path("show.png"),
    device: Annotated[Device, typer.Option(help="auto takes CUDA where there is one")] = "auto",
    chunk: Annotated[int, typer.Option(min=1, help="samples that go through the model at once")] = 16,
) -> None:
    """Draw the maps of all methods on a few samples, side by side, to see what they say before anything is measured.

    Examples: `harness show mnist-cnn`, `harness show torchvision:resnet50 dog.jpg --weights IMAGENET1K_V2`,
    `harness show file:net.py:build cat.png dog.png --weights w.pt --methods gradient,grad_cam`. Methods may be
    YAML mappings, '{method: smoothgrad, samples: 50}'. What the weights do not say of the preprocessing is assumed
    and said so; --data '{resize: 256, crop: 224, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}' says it.

    Exit codes: 0 done; 1 a method failed; 2 wrong input.
    """
    from harness import gallery as galleries
    from harness import panels
    from harness.arguments import data_of_images, entry_of, method_entries, target_of
    from harness.catalogue import METHODS
    from harness.drawn import samples_as_drawn
    from harness.preparation import torch_device
    from harness.progress import bars
    from harness.study import choose

    base, place, explained = Path.cwd(), torch_device(device), target_of(target)
    panels.check_writable(out)
    chosen = choose(METHODS, method_entries(methods or galleries.all_methods()), "methods")
    entry, assumed = entry_of(model, data_of_images(images or [], data, base), weights, base)
    with warnings_told(), bars(console) as progress:
        subject = galleries.subject_to_show(
            entry, base, target=explained, samples=samples, device=place, progress=progress
        )
        names = ["", *(each.label for each in chosen)]
        shape = tuple(samples_as_drawn(subject.x[:1], subject.space.kind).shape[1:])
        panels.layout_of(subject.space.kind, shape, len(subject.rows), names)
        gallery = galleries.gallery_of(entry, base, subject, chosen, chunk=chunk, progress=progress)
    panels.write_png(panels.draw(gallery), out)
    lines = [f"assumed: {note}" for note in (*assumed, *gallery.notes)]
    lines += [f"{name} does not apply: {reason}" for name, reason in gallery.refused.items()]
    if any("background" in reason for reason in gallery.refused.values()):
        lines.append("of pictures, a folder with training samples is the background: --data '{train: FOLDER}'")
    lines += [f"{name} failed: {reason}" for name, reason in gallery.failed.items()]
    lines.append(f"written to {out}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
    raise typer.Exit(1 if gallery.failed else 0)
