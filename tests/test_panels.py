"""The figure of the gallery: every value in its colour, every panel in its place."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from harness.figures import DPI
from harness.gallery import Gallery, Shown
from harness.panels import check_writable, draw, layout_of, write_png
from harness.types import InputError

FEW = ["gradient", "occlusion", "lrp_epsilon"]


def gallery_of_noise(kind, *shape, samples=1, methods=FEW):
    """Samples and maps of this shape, [c, *axes] or [f]; the maps of each method have a scale of their own."""
    generator = np.random.default_rng(0)
    axes = shape[1:] or shape
    names = [f"{'ab'[row]}.png" for row in range(samples)]
    shown = [Shown(name, generator.random(shape), f"class {name[0]} 99.0%", "explained: class c") for name in names]
    maps = {name: 10.0**-row * generator.normal(size=(samples, *axes)) for row, name in enumerate(methods)}
    return Gallery("net", kind, shown, maps)


def test_each_panel_has_its_name_its_limit_and_symmetric_colours():
    gallery = gallery_of_noise("image", 3, 12, 12, samples=2)
    figure = draw(gallery)
    assert len(figure.axes) == 2 * (1 + len(FEW))
    for row, sample in enumerate(gallery.samples):
        first, *others = figure.axes[row * 4 : row * 4 + 4]
        assert first.get_title() == sample.predicted
        assert [axis.get_title() for axis in others] == FEW
        for axis, maps in zip(others, gallery.maps.values(), strict=True):
            (image,) = axis.get_images()
            limit = np.percentile(np.abs(maps[row]), 99.5)
            np.testing.assert_array_equal(image.get_array(), maps[row])
            assert (image.norm.vmin, image.norm.vmax) == pytest.approx((-limit, limit))
            assert (image.get_cmap().name, image.get_interpolation()) == ("RdBu_r", "nearest")
            assert axis.get_xlabel() == f"±{limit:.2g}"
    written = " ".join(text.get_text() for text in figure.texts)
    assert "99.5th percentile" in written
    assert "a.png   (explained: class c)" in written
    assert figure.texts[0].get_text() == "net: 3 methods"


def test_the_file_holds_the_colours_of_every_value(tmp_path):
    """A map is not resampled: each value is a square of pixels in the colour that it stands for."""
    gallery = gallery_of_noise("image", 3, 12, 12)
    write_png(draw(gallery), tmp_path / "deep" / "er" / "out.png")
    assert sorted(path.name for path in (tmp_path / "deep" / "er").iterdir()) == ["out.png"]
    picture = np.asarray(Image.open(tmp_path / "deep" / "er" / "out.png").convert("RGB")).astype(int)
    layout = layout_of("image", (3, 12, 12), 1, ["", *FEW])
    assert picture.shape == (layout.height, layout.width, 3)
    assert Image.open(tmp_path / "deep" / "er" / "out.png").info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    size = layout.panel[0] // 12
    assert layout.panel == (12 * size, 12 * size)
    values = [gallery.maps[name][0] for name in FEW]
    shades = [colormaps["RdBu_r"]((v / np.percentile(np.abs(v), 99.5) + 1) / 2)[..., :3] for v in values]
    for panel, wanted in enumerate([np.moveaxis(gallery.samples[0].values, 0, -1), *shades]):
        left, top = layout.corner(0, panel)
        middle = size // 2 + size * np.arange(12)
        found = picture[top : top + 12 * size, left : left + 12 * size][middle][:, middle]
        assert np.abs(found - 255 * wanted).max() <= 2  # a shade is one of 256


def test_maps_of_photographs_take_whole_pixels():
    for side, pixels in ((224, 224), (28, 224), (384, 384), (8, 224), (299, 299), (1000, 450)):
        assert layout_of("image", (3, side, side), 1, [""] * 9).panel == (pixels, pixels)
    assert layout_of("image", (1, 129, 61), 1, [""] * 9).panel == (2 * 61, 2 * 129)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("image", (3, 224, 224)),
        ("image", (3, 500, 200)),
        ("image", (1, 10, 400)),
        ("signal", (1, 8000)),
        ("table", (13,)),
        ("table", (4000,)),
    ],
)
@pytest.mark.parametrize("count", [1, 7, 8, 45])
def test_panels_lie_side_by_side_inside_the_figure(kind, shape, count):
    layout = layout_of(kind, shape, 2, ["", *(f"a_method_with_a_very_long_name_{n}" for n in range(count))])
    width, height = layout.panel
    corners = [layout.corner(sample, panel) for sample in range(2) for panel in range(1 + count)]
    assert len(set(corners)) == 2 * (1 + count)
    for left, top in corners:
        assert 0 < left < left + width < layout.width <= 2100
        assert layout.top < top < top + height < layout.height
    for (left, top), (other_left, other_top) in combinations(corners, 2):
        assert abs(left - other_left) >= width or abs(top - other_top) >= height + layout.above


def test_long_names_take_a_second_line_and_are_no_formulas():
    maps = {name: np.ones((1, 8, 8)) for name in ("gradient", "a_method[samples=50,noise=0.15,absolute=True]", "$x^2$")}
    sample = Shown("pictures/$a$.png", np.ones((1, 8, 8)), "class 3 99.0%", "explained: the predicted class")
    figure = draw(Gallery("net", "image", [sample], maps))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1:] == ["gradient", "a_method[samples=50,\nnoise=0.15,absolute=True]", "$x^2$"]
    canvas = FigureCanvasAgg(figure).get_renderer()
    for axis in figure.axes:
        extent = axis.title.get_window_extent(canvas)
        assert extent.width <= layout_of("image", (1, 8, 8), 1, titles).cell
    assert not any(text.get_parse_math() for text in (*figure.texts, *(axis.title for axis in figure.axes)))


def test_a_map_of_zeros_says_so():
    maps = {"zeros": np.zeros((1, 8, 8)), "one": np.pad([[[-3.0]]], ((0, 0), (0, 7), (0, 7)))}
    figure = draw(Gallery("net", "image", [Shown("a", np.ones((1, 8, 8)), "class 3", "")], maps))
    limit = np.percentile(np.abs(maps["one"]), 99.5)
    assert [axis.get_xlabel() for axis in figure.axes[1:]] == ["zero everywhere", f"±{limit:.2g}"]


def test_signals_are_waves_before_a_strip_of_their_map():
    gallery = gallery_of_noise("signal", 1, 100, samples=2, methods=["gradient", "occlusion"])
    figure = draw(gallery)
    for row in range(2):
        first, *others = figure.axes[3 * row : 3 * row + 3]
        for axis in (first, *others):
            (line,) = axis.lines
            np.testing.assert_allclose(line.get_ydata(), gallery.samples[row].values[0])
            assert axis.get_xlim() == (0, 100)
        for axis, maps in zip(others, gallery.maps.values(), strict=True):
            (strip,) = axis.get_images()
            np.testing.assert_array_equal(strip.get_array(), maps[row][None])
            assert tuple(strip.get_extent()[:2]) == (0, 100)
            assert tuple(strip.get_extent()[2:]) == axis.get_ylim()
            assert axis.lines[0].get_zorder() > strip.get_zorder()


def test_tables_are_bars_of_their_features():
    gallery = gallery_of_noise("table", 5, methods=["gradient", "occlusion"])
    first, *others = draw(gallery).axes
    assert [bar.get_width() for bar in first.patches] == pytest.approx(gallery.samples[0].values.tolist())
    for axis, maps in zip(others, gallery.maps.values(), strict=True):
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(maps[0].tolist())
        limit = np.percentile(np.abs(maps[0]), 99.5)
        for bar, value in zip(axis.patches, maps[0], strict=True):
            assert bar.get_facecolor() == pytest.approx(colormaps["RdBu_r"]((value / limit + 1) / 2))
        low, high = axis.get_xlim()
        assert low == -high
        assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first feature on top


def test_of_wide_tables_the_largest_features_are_drawn():
    values = np.where(np.arange(500) % 10 == 3, 5.0, 0.1) * np.where(np.arange(500) % 20 == 3, -1, 1)
    sample = Shown("row", np.arange(500.0), "class 0", "")
    _, axis = draw(Gallery("net", "table", [sample], {"gradient": values[None]})).axes
    drawn = [int(label.get_text()) for label in axis.get_yticklabels()]
    assert drawn == list(range(3, 403, 10))
    assert [bar.get_width() for bar in axis.patches] == [values[row] for row in drawn]


def test_a_picture_goes_into_no_folder_of_that_name(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(InputError, match=r"a.png is a folder: name a file in it"):
        check_writable(tmp_path / "a.png")
