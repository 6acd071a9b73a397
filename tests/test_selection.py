"""Which samples are explained, for which class, and how often they are read; what is left out is said."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import harness
from harness.catalogue import DATA, MODELS
from harness.data import images, of_tensors
from harness.data.images import Preprocessing
from harness.digests import digest
from harness.entries import SourceEntry
from harness.models import ModelSource, Pretrained
from harness.progress import silent
from harness.random import Draws
from harness.space import InputSpace
from harness.study import load_study
from harness.subjects import candidates, subject_of_entry, targets
from harness.types import InputError

PIXELS = {"mean": [0.0] * 3, "std": [1.0] * 3}

NET = """
import torch
from torch import nn

def build():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, {outputs}))
    with torch.no_grad():
        network[2].weight.copy_(10 * torch.eye({outputs}, 3))
        network[2].bias.fill_(-3)
    return network.eval()
"""


def study(tmp_path, data, outputs=3, **more):
    """A study of a network that finds the strongest of three colours."""
    (tmp_path / f"net{outputs}.py").write_text(NET.format(outputs=outputs))
    path = tmp_path / "s.yaml"
    model = {"source": f"file:net{outputs}.py:build"}
    tests = {
        "methods": [{"method": "integrated_gradients", "steps": 4}],
        "metrics": ["completeness"],
        "controls": False,
    }
    path.write_text(json.dumps({"name": "s", "data": data, "models": [model], **tests, **more}))
    return path


def subject(tmp_path, data, **more):
    resolved = load_study(study(tmp_path, data, **more))
    entry = resolved.models[0]
    return subject_of_entry(entry, resolved, device=torch.device("cpu"), samples=None, progress=silent)


def colours(tmp_path, names, seed=0):
    """A picture for each name: of the colour that its folder says, or, if it is called wrong, of the next one."""
    generator = np.random.default_rng(seed)
    for name in names:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (4, 4, 3), dtype=np.uint8)
        strongest = ["blue", "green", "red"].index(file.parent.name) if file.parent != tmp_path / "photos" else 0
        pixels[:, :, (strongest + ("wrong" in name)) % 3] = 250
        Image.fromarray(pixels).save(file)


def made(labels, name="made"):
    y = None if labels is None else torch.tensor(labels)
    count = 30 if labels is None else len(labels)
    return of_tensors(name, torch.zeros(count, 2), y, InputSpace("table"))


# ---- which samples


def test_first_takes_them_as_they_come():
    assert list(candidates(made(None), "first")) == list(range(30))


def test_stratified_takes_one_of_each_class_in_turn_in_an_order_of_its_own():
    labels = np.random.default_rng(0).permutation([0] * 50 + [1] * 20 + [2] * 7 + [5] * 1).tolist()
    rows = candidates(made(labels), "stratified")
    assert sorted(rows) == list(range(78))
    taken = [labels[row] for row in rows]
    # By the slow definition: in each round one of every class that has some left.
    left, rounds = Counter(labels), []
    while left:
        rounds += sorted(left)
        left -= Counter(list(left))
    assert taken == rounds
    for count in range(1, 79):
        counts = Counter(taken[:count])
        fair = [counts[label] for label in (0, 1, 2, 5) if counts[label] < labels.count(label)]
        assert not fair or max(counts.values()) - min(fair) <= 1
    zeros = [row for row in rows if labels[row] == 0]
    assert zeros != sorted(zeros)
    assert rows == candidates(made(labels), "stratified") == candidates(made(labels), "correct")
    assert rows != candidates(made(labels, "another"), "stratified")


def test_stratified_orders_are_all_alike():
    labels = [0] * 4
    firsts = Counter(candidates(made(labels, f"d{seed}"), "stratified")[0] for seed in range(400))
    assert all(60 < firsts[row] < 140 for row in range(4))  # 100 each, five standard deviations to either side


@pytest.mark.parametrize("select", ["stratified", "correct"])
def test_a_selection_by_class_needs_classes(select, tmp_path):
    with pytest.raises(InputError, match=f"made: select: {select} needs labels, and these samples have none"):
        candidates(made(None), select)
    colours(tmp_path, [f"{row}.png" for row in range(3)])
    with pytest.raises(InputError, match=f"folder:photos: select: {select} needs labels"):
        subject(tmp_path, {"source": "folder:photos", "select": select, **PIXELS})


FILES = [
    f"{colour}/{kind}{row}.png" for colour in ("blue", "green", "red") for row in range(9) for kind in ("a", "wrong")
]


def test_a_smaller_selection_is_the_beginning_of_a_larger_one(tmp_path):
    colours(tmp_path, FILES)
    data = {"source": "folder:photos", **PIXELS}
    for select in ("first", "stratified", "correct"):
        chosen = [subject(tmp_path, {**data, "select": select, "samples": count}).samples for count in (3, 9, 21)]
        assert [len(samples) for samples in chosen] == [3, 9, 21]
        assert chosen[2][:9] == chosen[1]
        assert chosen[1][:3] == chosen[0]
        assert len(set(chosen[2])) == 21
        if select == "first":
            assert list(chosen[2]) == sorted(FILES)[:21]
        if select == "stratified":
            assert Counter(sample.partition("/")[0] for sample in chosen[2]) == {"blue": 7, "green": 7, "red": 7}


def test_correct_takes_those_that_the_model_knows_in_the_order_of_stratified(tmp_path):
    colours(tmp_path, FILES)
    data = {"source": "folder:photos", **PIXELS}
    everything = subject(tmp_path, {**data, "select": "stratified"}).samples
    right = [sample for sample in everything if "wrong" not in sample]
    correct = subject(tmp_path, {**data, "select": "correct"})
    assert list(correct.samples) == right
    assert correct.target.tolist() == [["blue", "green", "red"].index(each.partition("/")[0]) for each in right]
    assert list(subject(tmp_path, {**data, "select": "correct", "samples": 20}).samples) == right[:20]
    with pytest.raises(InputError, match=r"net3: 28 samples asked for, folder:photos has 27 \(correct\)"):
        subject(tmp_path, {**data, "select": "correct", "samples": 28})
    with pytest.raises(InputError, match=r"net3: 55 samples asked for, folder:photos has 54 \(first\)"):
        subject(tmp_path, {**data, "samples": 55})


def test_names_of_classes_that_cannot_be_the_outputs_are_refused(tmp_path):
    names = ["ant", "bee", "cat", "dog", "eel"]
    for name in names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), (250, 0, 9)).save(tmp_path / "photos" / name / "1.png")
    data = {"source": "folder:photos", **PIXELS}
    message = "folder:photos has 5 classes by name, the model 10 outputs: `classes` in the data entry lists the names"
    for more in ({"target": "label"}, {"data": {**data, "select": "correct"}}):
        with pytest.raises(InputError, match=re.escape(message)):
            subject(tmp_path, **{"data": data, "outputs": 10, **more})
    assert len(subject(tmp_path, data, outputs=10).samples) == 5  # harmless for the predicted class
    every = ["fly", "eel", "dog", "gnu", "bee", "hen", "cat", "ibis", "ant", "jay"]
    chosen = subject(tmp_path, {**data, "classes": every}, outputs=10, target="label")
    assert chosen.target.tolist() == [every.index(name) for name in names]


def test_each_policy_explains_what_a_plain_loop_finds(tmp_path):
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.arange(40) % 5, [str(row) for row in range(40)]
    ranked = [sorted(range(5), key=lambda k, row=row: -row[k]) for row in logits.tolist()]
    assert targets("predicted", logits, labels, ids).tolist() == [order[0] for order in ranked]
    assert targets("runner_up", logits, None, ids).tolist() == [order[1] for order in ranked]
    assert targets("label", logits, labels, ids).tolist() == labels.tolist()
    assert targets(3, logits, None, ids).tolist() == [3] * 40
    with pytest.raises(InputError, match="the label of sample 7 is 5, outside 0 to 4"):
        targets("label", logits, torch.where(torch.arange(40) == 7, 5, labels), ids)
    with pytest.raises(InputError, match="the label of sample 9 is -1, outside 0 to 4"):
        targets("label", logits, torch.where(torch.arange(40) == 9, -1, labels), ids)
    colours(tmp_path, ["blue/1.png", "green/wrong2.png", "red/3.png"])
    data = {"source": "folder:photos", **PIXELS}
    for policy, expected in (("predicted", [0, 2, 2]), ("label", [0, 1, 2]), (1, [1, 1, 1])):
        assert subject(tmp_path, data, target=policy).target.tolist() == expected, policy


# ---- what cannot be read


def test_broken_samples_are_left_out_and_named_and_the_next_come_in_their_place(tmp_path):
    colours(tmp_path, [f"{row:02}.png" for row in range(24)])
    broken = [f"{row:02}.png" for row in (1, 2, 17, 18, 19)]
    for name in broken:
        (tmp_path / "photos" / name).write_bytes(b"")
    whole = [f"{row:02}.png" for row in range(24) if f"{row:02}.png" not in broken]
    data = {"source": "folder:photos", "broken": "skip", "samples": 17, **PIXELS}
    with pytest.warns(UserWarning, match=r"net3: 5 samples were skipped: cannot read '.*01\.png': .*19\.png'"):
        results = harness.run(study(tmp_path, data), tmp_path / "out", device="cpu")
    assert sorted(set(results.records["sample"])) == whole[:17]
    assert results.failures.empty
    with pytest.warns(UserWarning, match=r"2 samples were skipped: cannot read '.*01\.png': .*02\.png'"):
        chosen = subject(tmp_path, {**data, "samples": 4})
    assert list(chosen.samples) == whole[:4]
    assert len(chosen.skipped) == 2
    oracle = DATA["folder"].load("photos", DATA["folder"].resolve(PIXELS), base=tmp_path, preprocessing=None)
    assert torch.equal(chosen.x, torch.stack([oracle.read(row) for row in (0, 3, 4, 5)]))
    assert list(chosen.contents) == [digest(oracle.read(row)) for row in (0, 3, 4, 5)]
    with pytest.raises(InputError, match=r"20 samples asked for, folder:photos has 19 \(first\)"):
        subject(tmp_path, {**data, "samples": 20})


def test_broken_samples_end_a_study_before_anything_is_computed_unless_they_are_to_be_skipped(tmp_path):
    colours(tmp_path, [f"{row:02}.png" for row in range(24)])
    (tmp_path / "photos" / "20.png").write_text("no picture")
    path = study(tmp_path, {"source": "folder:photos", **PIXELS})
    with pytest.raises(InputError, match=r"cannot read '.*20\.png': .*; `broken: skip` in the data entry leaves such"):
        harness.run(path, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    for file in (tmp_path / "photos").iterdir():
        file.write_bytes(b"")
    with pytest.raises(InputError, match=r"none of the first 16 samples can be read"):
        subject(tmp_path, {"source": "folder:photos", "broken": "skip", **PIXELS})


def test_pictures_of_two_sizes_are_refused_with_both_wherever_they_stand(tmp_path):
    colours(tmp_path, [f"{row:02}.png" for row in range(20)])
    Image.new("RGB", (4, 9), (250, 0, 9)).save(tmp_path / "photos" / "19.png")
    message = r"'00\.png' is \[3, 4, 4\], '19\.png' is \[3, 9, 4\]; declare one size for all"
    with pytest.raises(InputError, match=message):
        subject(tmp_path, {"source": "folder:photos", **PIXELS})
    with pytest.raises(InputError, match=message):
        harness.run(study(tmp_path, {"source": "folder:photos", **PIXELS}), tmp_path / "out", device="cpu")


def test_weights_bring_the_preprocessing_that_the_data_entry_does_not_declare(tmp_path, monkeypatch):
    theirs = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), (6,), 4, "bicubic")

    def mine():
        def build(shape, classes):
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))

        return ModelSource("mine", build, {"published": Pretrained(lambda: build(0, 0).state_dict(), theirs)})

    monkeypatch.setitem(MODELS._entries, "mine", SourceEntry("mine", mine, "source", 1, ()))
    colours(tmp_path, ["1.png", "2.png"])
    data = {"source": "folder:photos"}
    chosen = subject(tmp_path, data, models=[{"source": "mine", "weights": "published"}])
    for row, name in enumerate(("1.png", "2.png")):
        with Image.open(tmp_path / "photos" / name) as picture:
            assert torch.equal(chosen.x[row], theirs(picture))
    assert chosen.space == InputSpace("image", theirs.mean, theirs.std)
    declared = subject(tmp_path, {**data, **PIXELS}, models=[{"source": "mine", "weights": "published"}])
    assert declared.x.shape == (2, 3, 4, 4)
    assert not torch.equal(declared.x, chosen.x)
    with pytest.raises(InputError, match="nothing says how a picture becomes an input: declare resize, crop, mean"):
        subject(tmp_path, data, models=[{"source": "mine", "weights": "random"}])


# ---- how often they are read


def test_a_study_reads_each_sample_twice_however_many_methods_there_are(tmp_path, monkeypatch):
    colours(tmp_path, [f"{row:03}.png" for row in range(300)])  # more than one block of 256
    reads, plain = Counter(), images._decoder

    def counting(prepare):
        decode = plain(prepare)

        def counted(path):
            reads[path.name] += 1
            return decode(path)

        return counted

    monkeypatch.setattr(images, "_decoder", counting)
    more = {"methods": ["gradient", "input_x_gradient", "integrated_gradients"], "controls": True}
    results = harness.run(
        study(tmp_path, {"source": "folder:photos", **PIXELS}, **more), tmp_path / "out", device="cpu"
    )
    assert results.failures.empty
    assert len(reads) == len(set(results.records["sample"])) == 300
    # From the first the shape of an input was learnt, and the form of the model for inference was checked on them.
    first = {f"{row:03}.png" for row in range(16)}
    assert {count for name, count in reads.items() if name not in first} == {2}
    assert {count for name, count in reads.items() if name in first} <= {2, 3, 4}


# ---- data of any kind


def test_a_fingerprint_changes_with_everything_and_with_nothing_else():
    space = InputSpace("table", (0.0,), (1.0,))
    x, y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2])

    def made(x=x, y=y, **options):
        return of_tensors("t", x.clone(), y, space, **options).fingerprint

    train = of_tensors("t", x, y, space)
    others = [
        made(x + 1e-7),
        made(x.flip(0)),
        made(x.double()),
        made(y=y.flip(0)),
        made(y=None),
        made(ids=["a", "b", "c"]),
        made(train=train),
        made(train=of_tensors("t", x, y.flip(0), space)),
    ]
    assert made() == made()
    assert len({made(), *others}) == 9


def test_a_space_has_a_box_of_its_own_for_each_channel():
    low, high, mean, std = (0.0, -5.0, 100.0), (1.0, 5.0, 300.0), (0.5, 1.0, 150.0), (0.25, 2.0, 50.0)
    for kind, shape in (("image", (4, 3, 5, 6)), ("signal", (4, 3, 20)), ("table", (4, 3))):
        space = InputSpace(kind, mean, std, low, high)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
        draws = Draws.of(list("abcd"), "fill")
        fills = {name: space.fill(name, x, draws) for name in ("black", "grey", "white", "mean", "noise")}
        worst = []
        for sample in range(4):
            excess = [0.0]
            for c in range(3):
                levels = {"black": low[c], "grey": (low[c] + high[c]) / 2, "white": high[c], "mean": mean[c]}
                for name, level in levels.items():
                    pixel = fills[name][sample, c] * std[c] + mean[c]
                    torch.testing.assert_close(pixel, torch.full_like(pixel, level), rtol=1e-12, atol=1e-12)
                noise = fills["noise"][sample, c] * std[c] + mean[c]
                assert low[c] <= noise.min() <= noise.max() <= high[c]
                for value in x[sample, c].flatten().tolist():
                    pixel = value * std[c] + mean[c]
                    excess += [(low[c] - pixel) / (high[c] - low[c]), (pixel - high[c]) / (high[c] - low[c])]
            worst.append(max(excess))
        torch.testing.assert_close(space.excess(x), torch.tensor(worst, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        inside = space.excess(fills["noise"])
        assert inside.max() < 1e-12 < max(worst)
        with pytest.raises(InputError, match="the space declares 3 channels, x has 2"):
            space.check(x[:, :2])
