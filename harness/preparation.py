"""What stands before a run: the study is read, models and data are loaded and checked, and the cells are planned."""

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.plan import Group, code_hash, plan
from harness.store import Folder
from harness.study import Chosen, Resolved, load_study
from harness.subjects import Subject, subject_of_entry
from harness.training import Progress
from harness.types import InputError

CHUNK = 64
RESULTS = Path("results")


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to be run.

    Attributes:
        resolved: the study.
        folder: where its results go.
        device: where its models are.
        samples: overrides how many samples of each model's data are used.
        chunk: how many samples go through a model at once, at most.
        subjects: the models with their samples.
        groups: the plan.
    """

    resolved: Resolved
    folder: Folder
    device: torch.device
    samples: int | None
    chunk: int
    subjects: tuple[Subject, ...]
    groups: tuple[Group, ...]

    @property
    def seed(self) -> int:
        """The study's seed."""
        return self.resolved.study.seed

    def write_manifest(self) -> None:
        """What the run consists of, and its circumstances, into the folder."""
        before = self.folder.read_manifest()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = {
            "study": _manifest(self.resolved),
            "run": self.folder.path.name,
            "begun": before[0].get("begun", now) if before else now,
            "chunk": self.chunk,
            "samples": self.samples,
            "environment": _environment(self.device),
            "marks": list(self.resolved.marks),
            "subjects": [_described(subject) for subject in self.subjects],
        }
        self.folder.write_manifest(manifest, [task.cell for group in self.groups for task in group.tasks])

    def warn_of_other_versions(self) -> None:
        """Warn of finished cells that other versions of the code or of torch have computed."""
        tasks = [task for group in self.groups for task in group.tasks]
        finished = [(task, info) for task in tasks if (info := self.folder.info(task.cell))]
        for what, count in (
            ("the code", sum(info["code"] != task.code for task, info in finished)),
            ("torch", sum(info["torch"] != torch.__version__ for _, info in finished)),
        ):
            if count:
                warnings.warn(
                    f"{count} finished cells of {self.folder.path} were computed with another version of {what}; "
                    "they are used as they are. For a fresh start use another --out.",
                    stacklevel=3,
                )


def prepare(
    study: str | Path | Mapping[str, Any],
    out: str | Path | None,
    *,
    device: str,
    samples: int | None,
    chunk: int | None,
    progress: Progress,
) -> Prepared:
    """Read a study, load its models and data, and plan its cells; nothing is computed and nothing written.

    The arguments are those of `harness.run`.

    Raises:
        InputError: something in the study, the data or a model is wrong.
    """
    resolved = load_study(study)
    place = torch_device(device)
    folder = Folder(Path(out) if out else RESULTS / resolved.study.name)
    before = folder.read_manifest()
    check_positive("chunk", chunk)
    check_positive("samples", samples)
    kept = before[0]["chunk"] if before else None
    if kept and chunk and kept != chunk:
        raise InputError(f"the cells in {folder.path} were computed with --chunk {kept}: use that one or another --out")
    subjects = [
        subject_of_entry(entry, resolved, device=place, samples=samples, progress=progress) for entry in resolved.models
    ]
    groups = plan(subjects, resolved.methods, resolved.metrics, resolved.study.seed, resolved.introspections)
    return Prepared(resolved, folder, place, samples, chunk or kept or CHUNK, tuple(subjects), tuple(groups))


def torch_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one.

    Raises:
        InputError: an unknown name, or CUDA where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device is auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_positive(name: str, value: int | None) -> None:
    """Check that a number is at least 1, where there is one.

    Raises:
        InputError: it is not.
    """
    if value is not None and value < 1:
        raise InputError(f"{name} must be at least 1, got {value}")


def _manifest(resolved: Resolved) -> dict[str, Any]:
    def listed(entries: Sequence[Chosen]) -> list[dict[str, Any]]:
        return [
            {"name": e.label, "function": e.entry.name, "version": e.entry.version, "options": dict(e.options)}
            for e in entries
        ]

    return {
        **resolved.study.model_dump(exclude={"models", "methods", "metrics", "introspections"}),
        "models": [model.model_dump() for model in resolved.models],
        "methods": listed(resolved.methods),
        "metrics": listed(resolved.metrics),
        **({"introspections": listed(resolved.introspections)} if resolved.introspections else {}),
    }


def _described(subject: Subject) -> dict[str, Any]:
    source = subject.source
    return {
        "model": subject.label,
        "model_seed": source.model_seed,
        "dataset": subject.dataset,
        "samples": len(subject.rows),
        "weights": source.weights,
        "weights_from": source.origin,
        "twins": source.note,
        "skipped": list(subject.skipped),
    }


def _environment(device: torch.device) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "code": code_hash(),
    }
