"""Maps that a run keeps: what the methods gave, for these samples, and never those of something else."""

import numpy as np
import pytest
import torch

import harness
from harness import Results, subjects
from harness.entries import UnknownNameError
from harness.study import load_study
from harness.types import InputError

METHODS = ["gradient", {"method": "smoothgrad", "samples": 3}]


def study(**changes):
    return {
        "name": "kept",
        "data": {"source": "mnist-5k", "samples": 6},
        "models": ["mnist-cnn"],
        "methods": METHODS,
        "metrics": ["completeness", {"metric": "pixel_flipping", "steps": 4}],
        **changes,
    }


def run(folder, save_maps=True, **changes):
    return harness.run(study(**changes), folder, views=False, save_maps=save_maps)


def same(first, second):
    return np.array_equal(first.maps, second.maps) and first.ids == second.ids


def test_they_are_the_maps_of_the_method_with_the_samples_and_classes(tmp_path):
    results = run(tmp_path)
    kept, samples = results.maps("gradient"), results.samples()
    entry = load_study(study()).models[0]
    net, data = subjects.load_entry(entry, tmp_path, seed=0, device=torch.device("cpu"), progress=lambda *_: None)
    x = data.batch([list(data.ids).index(each) for each in kept.ids])
    found = harness.explain(net.model, x, torch.from_numpy(kept.target), method="gradient")
    assert np.array_equal(kept.maps, found.numpy())
    assert kept.ids == samples.ids == tuple(results.records["sample"].unique())
    assert samples.kind == "image"
    assert samples.explained == tuple(str(target) for target in kept.target)
    assert np.array_equal(samples.x, (data.space.within_box(x) * 255).round().byte().numpy())


def test_a_finished_run_computes_nothing_but_the_maps(tmp_path):
    run(tmp_path / "a", save_maps=False)
    with pytest.raises(InputError, match="no maps of gradient on mnist-cnn are kept"):
        Results.load(tmp_path / "a").maps("gradient")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "cells").iterdir()}
    later, at_once = run(tmp_path / "a"), run(tmp_path / "b")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a" / "cells").iterdir()}
    for method in ("gradient", "smoothgrad"):
        assert same(later.maps(method), at_once.maps(method))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    run(tmp_path / "a")
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}


def test_maps_of_other_options_or_samples_are_not_shown_as_these(tmp_path):
    first = run(tmp_path).maps("smoothgrad")
    others = {"methods": ["gradient", {"method": "smoothgrad", "samples": 4}]}
    without = run(tmp_path, save_maps=False, **others)
    assert not without.has_maps("smoothgrad", "mnist-cnn")
    assert without.has_maps("gradient", "mnist-cnn")
    with pytest.raises(InputError, match="run the study again with --save-maps"):
        without.maps("smoothgrad")
    assert not same(run(tmp_path, **others).maps("smoothgrad"), first)
    fewer = run(tmp_path, save_maps=False, data={"source": "mnist-5k", "samples": 4})
    assert not fewer.has_maps("gradient", "mnist-cnn")


def test_several_blocks_are_read_as_one(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    monkeypatch.setattr(subjects, "SAMPLES_A_BLOCK", 4)
    parts = run(tmp_path / "parts")
    assert len(list((tmp_path / "parts").rglob("gradient-*.npz"))) == 2
    assert np.allclose(parts.maps("gradient").maps, whole.maps("gradient").maps, atol=1e-6)
    assert np.array_equal(parts.samples().x, whole.samples().x)
    assert parts.samples().ids == whole.samples().ids


def test_a_method_that_fails_keeps_none_and_the_others_do(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from harness import method\n\n@method(family='gradient')\ndef breaks(model, x, target):\n"
        "    'A method with a mistake.'\n    model.register_forward_hook(print)\n    raise RuntimeError('a mistake')\n"
    )
    plugins = {"plugins": [str(tmp_path / "broken.py")], "methods": ["breaks", "gradient", "lrp_epsilon"]}
    results = run(tmp_path / "run", **plugins)
    assert not results.has_maps("breaks", "mnist-cnn")
    assert same(results.maps("gradient"), run(tmp_path / "other", methods=["gradient"]).maps("gradient"))


def test_a_torn_file_is_set_aside_and_made_again(tmp_path):
    kept = run(tmp_path).maps("gradient")
    (path,) = tmp_path.rglob("gradient-0.npz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.warns(UserWarning, match="torn or was changed"):
        assert not Results.load(tmp_path).has_maps("gradient", "mnist-cnn")
    assert (tmp_path / "damaged" / "gradient-0.npz").exists()
    assert same(run(tmp_path).maps("gradient"), kept)


def test_they_are_a_method_of_another_study(tmp_path):
    results = run(tmp_path / "first")
    (path,) = tmp_path.rglob("smoothgrad-0.npz")
    again = run(tmp_path / "second", save_maps=False, methods=[{"name": "theirs", "maps": str(path)}])
    flipped = [
        each.records.query("metric == 'pixel_flipping' and method == @name")["value"].to_numpy()
        for each, name in ((results, "smoothgrad"), (again, "theirs"))
    ]
    assert len(flipped[0])
    assert np.array_equal(*flipped)


def test_in_memory_and_with_names_that_do_not_exist():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    options = {"methods": ["gradient"], "metrics": ["completeness"]}
    results = harness.evaluate(model, torch.rand(5, 1, 4, 4), save_maps=True, **options)
    assert results.maps("gradient").maps.shape == (5, 1, 4, 4)
    with pytest.raises(UnknownNameError, match="unknown method 'gradeint'; did you mean gradient"):
        results.maps("gradeint")
    with pytest.raises(UnknownNameError, match="unknown model"):
        results.maps("gradient", "another")
    with pytest.raises(InputError, match="no samples of"):
        harness.evaluate(model, torch.rand(5, 1, 4, 4), **options).samples()


def test_any_label_is_a_file_name(tmp_path):
    label = "a/b: c?*[d=1]"
    results = run(tmp_path, methods=[{"name": label, "method": "gradient"}])
    assert same(results.maps(label), run(tmp_path / "plain", methods=["gradient"]).maps("gradient"))
    assert all(tmp_path in path.parents for path in tmp_path.rglob("*.npz"))
