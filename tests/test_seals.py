"""A part of a run is what was written, or it is noticed: every byte of it."""

import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

import harness
from harness.results import Results
from harness.seals import intact, sealed

SMALL = {
    "name": "small",
    "data": {"source": "digits", "samples": 3},
    "models": [{"name": "mlp", "source": "mlp", "weights": "random"}],
    "methods": ["gradient", "input_x_gradient"],
    "metrics": ["zero_fraction", "completeness"],
    "controls": False,
}


def table():
    text = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["a", "b"]))
    return pa.table({"text": text, "value": [0.5, 1.5, float("nan")]}).replace_schema_metadata({"cell": "{}"})


def test_every_flipped_byte_and_every_torn_end_is_noticed():
    content = sealed(table())
    assert intact(content)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        assert not intact(bytes(changed)), position
    assert not any(intact(content[:end]) for end in range(len(content)))
    assert not intact(content + b"\0")


def test_what_was_sealed_reads_as_it_was():
    read = pa.parquet.read_table(pa.BufferReader(sealed(table())))
    assert read.schema.equals(table().schema)
    assert read["value"].to_pylist()[:2] == [0.5, 1.5]


def test_a_file_of_others_has_no_seal():
    buffer = pa.BufferOutputStream()
    pa.parquet.write_table(table(), buffer)
    assert not intact(buffer.getvalue().to_pybytes())


@pytest.mark.parametrize("how", ["flipped", "torn", "empty"])
def test_a_damaged_part_is_set_aside_named_and_computed_again(tmp_path, how):
    first = harness.run(SMALL, tmp_path, views=False)
    part = sorted((tmp_path / "cells").iterdir())[1]
    content = part.read_bytes()
    changed = content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1 :]
    part.write_bytes({"flipped": changed, "torn": content[:-7], "empty": b""}[how])
    with pytest.warns(UserWarning, match=rf"{part.name} is torn or was changed .* moved to .*damaged"):
        states = list(Results.load(tmp_path).cells["status"])
    assert states.count("missing") == 1
    assert [each.name for each in (tmp_path / "damaged").iterdir()] == [part.name]
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    again = harness.run(SMALL, tmp_path, views=False)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert again.records.equals(first.records)


def test_a_part_that_is_damaged_is_noticed_by_the_next_run_itself(tmp_path):
    first = harness.run(SMALL, tmp_path, views=False)
    part = min((tmp_path / "cells").iterdir())
    part.write_bytes(part.read_bytes()[:100])
    with pytest.warns(UserWarning, match="torn or was changed"):
        again = harness.run(SMALL, tmp_path, views=False)
    assert set(again.cells["status"]) == {"done", "not_applicable"}
    assert again.records.equals(first.records)


def test_a_damaged_manifest_says_what_to_do(tmp_path):
    harness.run(SMALL, tmp_path, views=False)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(harness.InputError, match=r"manifest.json is damaged .* remove it and run the study again"):
        Results.load(tmp_path)
    manifest.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    harness.run(SMALL, tmp_path, views=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == before
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["name"] == "small"
