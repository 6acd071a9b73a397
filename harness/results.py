"""Results: the rows of a run and everything that is read from them."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from harness import plotted, tables
from harness.artifacts import Exhibit, side_by_side
from harness.catalogue import METRICS
from harness.comparisons import DEFAULT_COMPARING, Comparing
from harness.entries import GLOBAL, UnknownNameError, nearest
from harness.html import html
from harness.kept_maps import KeptMaps, KeptSamples, are_kept, maps_of, samples_of
from harness.marks import published
from harness.plan import Cell
from harness.rows import LABELS, RECORDS
from harness.series import Stack, stacks_of, state_of
from harness.statistics import DEFAULT, Thresholds
from harness.store import Folder, Store
from harness.types import InputError


@dataclass(frozen=True)
class Results:
    """What a study gave: `records`, `cells` and `failures` as data frames, and tables as views of them.

    `records`, `scalars` and `cells` grow with the samples; tables and figures are read from `stacks` and do not.

    Attributes:
        manifest: the resolved study and the circumstances of the run.
        planned: the cells of the study.
        store: where they are.
        thresholds: of the verdicts; others make other tables of the same rows: `replace(results, thresholds=...)`.
        comparing: how methods are compared; likewise.
    """

    manifest: Mapping[str, Any]
    planned: tuple[Cell, ...]
    store: Store
    thresholds: Thresholds = DEFAULT
    comparing: Comparing = DEFAULT_COMPARING

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """The results in a run folder, finished or not.

        Raises:
            InputError: there is no run in this folder.
        """
        folder = Folder(Path(path))
        found = folder.read_manifest()
        if found is None:
            raise InputError(f"no run in {str(path)!r}: there is no manifest.json (runs are in results/<study>)")
        manifest, cells = found
        return cls(manifest, tuple(cells), folder)

    @cached_property
    def records(self) -> pd.DataFrame:
        """One row for each number: the columns of `harness.rows.RECORDS`, text as categories. All in memory."""
        parts = []
        for cell in self.planned:
            part = self.store.part(cell)
            if part is None or part.rows.num_rows == 0:
                continue
            size = part.rows.num_rows
            labels = {
                "study": self.manifest["study"]["name"],
                "run": self.manifest["run"],
                "cell": cell.key,
                **{name: getattr(cell, name) for name in (*LABELS[3:], "method", "metric")},
            }
            columns = {name: _constant(value, size) for name, value in labels.items()}
            columns |= {name: part.rows[name] for name in part.rows.column_names}
            parts.append(pa.table({name: columns[name] for name in RECORDS}))
        if not parts:
            return pd.DataFrame(columns=list(RECORDS))
        frame: pd.DataFrame = pa.concat_tables(parts).unify_dictionaries().to_pandas()
        return frame

    @cached_property
    def scalars(self) -> pd.DataFrame:
        """The records that are not points of a curve."""
        return self.records[self.records["step"].isna()]

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row for each planned cell: labels, status, options, versions, passes, time, device."""
        return pd.DataFrame([{**asdict(cell), **state_of(cell, self.store)} for cell in self.planned])

    @cached_property
    def failures(self) -> pd.DataFrame:
        """One row for each failed cell, with the error and its traceback."""
        rows = [{**asdict(cell), **failure} for cell in self.planned if (failure := self.store.failure(cell))]
        columns = [*(f for f in Cell.__dataclass_fields__), "error", "traceback"]
        return pd.DataFrame(rows, columns=columns)

    @cached_property
    def stale(self) -> list[str]:
        """The keys of finished cells in the folder that the study no longer names."""
        return self.store.stale({cell.key for cell in self.planned})

    def stacks(self) -> Iterator[Stack]:
        """The cells of each model, model seed, method and metric, to be read one after the other."""
        return stacks_of(self.planned, self.store)

    @cached_property
    def subjects(self) -> dict[tuple[str, int], str]:
        """Each model and model seed, and what to call it: the model, with the seed where it comes with several."""
        found = list(dict.fromkeys((cell.model, cell.model_seed) for cell in self.planned))
        models = [model for model, _ in found]
        return {(model, seed): f"{model}-seed{seed}" if models.count(model) > 1 else model for model, seed in found}

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """One row for each model, model seed, method and metric: the method's family, how many cells came out how."""
        return self._tables["outcomes"]

    @cached_property
    def introspections(self) -> list[str]:
        """The labels of the introspections: where tables say `method`, but without maps."""
        found = self.outcomes
        of_networks = {name for name, metric in METRICS.items() if metric.family == GLOBAL}
        # A failed cell has not recorded its family.
        asks = found["metric"].str.partition("[")[0].isin(of_networks) | (found["method_family"] == GLOBAL)
        return list(found.loc[asks, "method"].unique())

    @cached_property
    def curves(self) -> pd.DataFrame:
        """The points of the curves that figures and charts draw; see `harness.plotted.curves`."""
        return plotted.curves(self)

    @cached_property
    def residuals(self) -> pd.DataFrame:
        """The spread of what maps miss of completeness; see `harness.plotted.residuals`."""
        return plotted.residuals(self)

    def table(self, name: str = "leaderboard") -> pd.DataFrame:
        """A view of the rows by name; see `harness.tables.TABLES`. All are computed at once, and only once.

        Raises:
            UnknownNameError: there is no such table.
        """
        if name not in tables.TABLES:
            raise UnknownNameError(f"unknown table {name!r}; {nearest(name, tables.TABLES)}")
        return self._tables[name]

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        marks = published().and_of(self.manifest.get("marks", []))
        return tables.build(self.stacks(), self.thresholds, marks, self.comparing)

    def maps(self, method: str, model: str | None = None, model_seed: int = 0) -> KeptMaps:
        """The raw maps of a method, as `--save-maps` kept them; of the first model where none is named.

        Raises:
            UnknownNameError: there is no such method or model.
            InputError: its maps are not kept, or are of other weights, samples or options than the cells.
        """
        model, method = self._known(model or self.planned[0].model, "model"), self._known(method, "method")
        found = maps_of(self._cells_of(model, model_seed, method), self.store)
        if found is None:
            raise InputError(f"no maps of {method} on {model} are kept: run the study again with --save-maps")
        return found

    def has_maps(self, method: str, model: str, model_seed: int = 0) -> bool:
        """Whether the maps of a method are kept, and are those that its cells were computed from."""
        return are_kept(self._cells_of(model, model_seed, method), self.store)

    def samples(self, model: str | None = None, model_seed: int = 0) -> KeptSamples:
        """The samples of a model, as `--save-maps` kept them; of the first model where none is named.

        Raises:
            InputError: they are not kept.
        """
        model = model or self.planned[0].model
        found = samples_of(self._cells_of(model, model_seed), self.store)
        if found is None:
            raise InputError(f"no samples of {model} are kept: run the study again with --save-maps")
        return found

    def _known(self, name: str, what: str) -> str:
        """The name of a model or method, once it is clear that there is one.

        Raises:
            UnknownNameError: there is none.
        """
        known = list(dict.fromkeys(getattr(cell, what) for cell in self.planned))
        if name not in known:
            raise UnknownNameError(f"unknown {what} {name!r}; {nearest(name, known)}")
        return name

    def _cells_of(self, model: str, model_seed: int, method: str | None = None) -> list[Cell]:
        mine = [cell for cell in self.planned if (cell.model, cell.model_seed) == (model, model_seed)]
        return [cell for cell in mine if method in (None, cell.method)]

    def artifacts(self, introspection: str, model: str | None = None, model_seed: int = 0) -> list[Exhibit]:
        """What an introspection shows of a model beside its numbers, by default of the first one.

        Returns:
            For each artifact and layer the one of the trained network and, where the check has run, of a re-initialized
            network (`random`) and of one with shuffled weights.

        Raises:
            UnknownNameError: there is no such introspection or model.
        """
        model = self._known(model or self.planned[0].model, "model")
        return side_by_side(self._cells_of(model, model_seed, self._known(introspection, "method")), self.store)

    def report(self, path: str | Path | None = None, *, gallery: int | None = None) -> Path:
        """Write the report, one HTML file that needs no network: `report.html` in the run folder by default.

        Args:
            path: of the file.
            gallery: how many samples of each model are in its gallery, at most.

        Returns:
            The file.
        """
        from harness.report.writing import write_report

        folder = self.store.path if isinstance(self.store, Folder) else Path()
        return write_report(self, Path(path) if path else folder / "report.html", gallery)

    def _repr_html_(self) -> str:
        """What a notebook shows: verdicts at a glance, and the leaderboard."""
        parts = [f"<h4>{name}</h4>{html(self.table(name))}" for name in ("glance", "leaderboard")]
        return f"<p>{escape(str(self.manifest['study']['name']))}</p>{''.join(parts)}"


def _constant(value: str | int, size: int) -> pa.Array:
    if isinstance(value, int):
        return pa.array([value] * size, pa.int64())
    return pa.DictionaryArray.from_arrays(pa.array([0] * size, pa.int64()), pa.array([value]))
