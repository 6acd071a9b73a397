"""Made-up scores of maps of known quality, for tests of how metrics are marked."""

from dataclasses import replace

import numpy as np

from harness.marking import (
    LOW,
    MIDDLE,
    QUALITIES,
    TRUTH,
    Answers,
)

NAN, N = np.nan, 200
ARRAYS = ("noise", "picture", "negated", "inverted", "rescaled", "in_company", "again")


def perfect(samples=N, spread=0.2, own=0.1, seed=0, chance=0.0):
    """A metric that scores quality; samples differ in how much by `spread`, and its own noise is `own`."""
    draw = np.random.default_rng(seed).standard_normal
    slope, shift = 1 + spread * draw(samples), spread * draw(samples)

    def scores(quality):
        return chance + slope * quality + shift + own * draw(samples)

    graded = {quality: scores(quality) for quality in QUALITIES}
    middle, again = graded[MIDDLE], scores(MIDDLE) - scores(LOW)
    return Answers(
        graded,
        noise=scores(0.0),
        picture=scores(0.0),
        negated=scores(-TRUTH),
        inverted=scores(-TRUTH / 2),
        rescaled=middle.copy(),
        in_company=middle.copy(),
        again=again,
        chance=chance,
    )


def exact(samples=N):
    """A metric that gives each quality its number, and nothing else has a part in it."""
    return perfect(samples, spread=0.0, own=0.0)


def graded(world, scores):
    """The world with other scores of some qualities; the same of the middle one in company and at another scale."""
    found = replace(world, graded={**world.graded, **scores})
    middle = found.graded[MIDDLE]
    return replace(found, rescaled=middle.copy(), in_company=middle.copy())


def some(values, count, value=NAN):
    values = values.copy()
    values[:count] = value
    return values


def standard(seed=3, samples=N):
    """Numbers whose mean is exactly 0 and whose standard deviation is exactly 1."""
    z = np.random.default_rng(seed).standard_normal(samples)
    return (z - z.mean()) / z.std(ddof=1)


def errors_above(errors, seed=3):
    """Numbers whose mean is exactly so many of its standard errors above zero."""
    return 0.1 * (standard(seed) + errors / N**0.5)
