"""Does the map look like the picture's edges, which need no model?"""

from collections.abc import Iterator

from harness.case import Case
from harness.edges import edge_strength
from harness.metrics.comparison import MEASURES, Convention, Measures, compare, ready
from harness.registry import metric
from harness.types import Score


@metric(
    family="descriptor",
    direction=None,
    headline="spearman",
    needs=("image",),
    cite="adebayo2018sanity",
    question="Does the map look like the edges of the picture?",
    misleads="A network may use edges: a high value is no fault by itself.",
)
def edge_similarity(
    case: Case, *, measures: Measures = MEASURES, convention: Convention = "harness"
) -> Iterator[Score]:
    r"""Similarity of the absolute map to the edges of its image, $|A(f, x, c)|$ and Sobel of $x$.

    An edge detector needs no model, so what looks like its output cannot be trusted by its looks
    (`adebayo2018sanity`). SSIM and HOG are of the map as their convention takes it. Role `floor_shift`: the edges are
    moved around the torus. A high value is no fault by itself: a network may use edges.

    Undefined where a map is constant or not finite, or the image has no edge.

    Args:
        case: what to test.
        measures: of similarity; see `harness.metrics.comparison`.
        convention: what is done to maps before they are compared; see `harness.metrics.comparison.ready`.

    Raises:
        NotApplicableError: none of the measures applies to these maps.
    """
    maps = ready(case.maps, "map", measures, convention)
    edges = ready(edge_strength(case.x).expand_as(case.maps), "edges", measures, convention)
    words = case.draws("edge_similarity", "shift").uniform(case.position_axes)
    for role, theirs in (("test", edges), ("floor_shift", edges.shifted(words))):
        for score in compare(maps, theirs, role=role):
            # Edges have no sign, so that signed ranks would say nothing.
            if score.sign == "absolute" or score.measure in ("ssim", "hog"):
                yield score
