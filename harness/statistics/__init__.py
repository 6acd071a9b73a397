"""Every statistic of the harness is here, and everything else calls it."""

from harness.statistics.concordance import kendall, kendall_b, krippendorff, signs
from harness.statistics.intervals import (
    NO_INTERVAL,
    Estimate,
    Interval,
    Values,
    difference_of,
    estimate_of,
    mean_interval,
    mean_of,
    median_interval,
    over_draws,
    share_interval,
)
from harness.statistics.paired import TESTS, Contrast, Test, contrast, holm, rank_biserial, sign_flip, told, wilcoxon
from harness.statistics.power import samples_needed
from harness.statistics.ranks import Place, cliques, kendall_w, nemenyi, places, places_of, ranks_of
from harness.statistics.resampling import basic_bootstrap, basic_interval, resampled, resampled_means
from harness.statistics.survival import (
    DEFAULT,
    FALSE_VERDICTS,
    SAME_MAP,
    Survival,
    Thresholds,
    Verdict,
    left_above,
    shares_above,
    survival,
)

__all__ = [
    "DEFAULT", "FALSE_VERDICTS", "NO_INTERVAL", "SAME_MAP", "TESTS", "Contrast", "Estimate", "Interval", "Place", "Survival", "Test",
    "Thresholds", "Values", "Verdict", "basic_bootstrap", "basic_interval", "cliques", "contrast", "difference_of", "estimate_of", "holm", "kendall",
    "kendall_b", "kendall_w", "krippendorff", "left_above", "mean_interval", "mean_of", "median_interval", "nemenyi", "over_draws", "places",
    "places_of", "rank_biserial", "ranks_of", "resampled", "resampled_means", "samples_needed", "share_interval", "shares_above", "sign_flip",
    "signs", "survival", "told", "wilcoxon",
]
