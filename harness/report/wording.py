"""The words of the report: its sections, what its tables are called, and a glossary."""

from collections.abc import Mapping, Sequence

SECTIONS: Mapping[str, str] = {
    "outcome": "What held",
    "verdicts": "Verdicts",
    "maps": "Maps",
    "leaderboard": "Leaderboard",
    "randomization": "Randomization",
    "flipping": "Flipping",
    "completeness": "Completeness",
    "ranks": "Ranks",
    "global": "Global",
    "cost": "Cost",
    "failures": "Failures",
    "provenance": "Provenance",
    "words": "Words",
}
"""Identifier -> title, in the order of the page."""

OF_MAPS = ("verdicts", "maps", "leaderboard", "randomization", "flipping", "completeness", "ranks")
"""Sections that say something of methods with maps only."""

TABLES: Mapping[str, Sequence[tuple[str, str, Mapping[str, str] | None]]] = {
    "randomization": (
        (
            "verdicts",
            "Every verdict, with the levels beside it",
            {
                "method": "method",
                "test": "test",
                "measure": "measure",
                "sign": "maps",
                "verdict": "verdict",
                "survival": "survival",
                "low": "low",
                "high": "high",
                "similarity": "similarity",
                "floor_shift": "chance (moved)",
                "floor_random": "two random networks",
                "floor_other": "another sample",
                "ceiling_rerun": "called twice",
                "ceiling_retrain": "trained again",
                "draws": "draws",
                "reason": "reason",
            },
        ),
        ("sensitivity", "From which stage on a map changes", None),
    ),
    "ranks": (
        ("rankings", "Ranks of methods by each metric", None),
        ("comparisons", "Every two methods on the same samples", None),
        ("families", "The metrics of one family together", None),
        ("left_out", "What changes without each metric", None),
        ("across_models", "Over models", None),
        ("agreement", "How far rankings agree", None),
        ("fills", "What fills cost the network at random", None),
    ),
    "cost": (("cost", "Sample-passes and seconds of each cell", None),),
}
"""Section -> tables of the run that unfold there: name, caption, and columns under other names (None: as they are)."""

GLOSSARY: Mapping[str, str] = {
    "attribution map": "A number for each place of an input: how much it speaks for (red) or against (blue) the "
    "explained class.",
    "control": "A method whose outcome is known beforehand, such as noise or an edge detector. If one comes out "
    "otherwise, the run is not to be trusted.",
    "introspection": "A technique that asks what a network has learnt, not why it decides as it does.",
    "re-initialized network": "A network of the same architecture with new weights, as before training.",
    "network with shuffled weights": "The trained network, with the weights of each tensor in random order: it keeps "
    "their distribution, and loses their structure.",
    "effect": "How far a trained network stands from networks that have learnt nothing, in standard deviations of "
    "these; positive on the side on which it is to stand.",
    "twin": "A network of the same architecture with random weights.",
    "draw": "One realisation of what is random: a twin, a class, an order.",
    "survival": "How much of the similarity of two maps is left when the network, or the class, is another one: 0 is "
    "chance, 1 is what two calls on one network give. With permuted labels 0 is what two networks give that learnt "
    "such, 1 what two give that learnt the true ones.",
    "PASS": "The 95 % interval of the survival lies below the lower threshold; of an introspection, the trained "
    "network lies beyond all that have learnt nothing. Necessary for trusting a method, not sufficient.",
    "FAIL": "The interval lies above the upper threshold, or two random networks give the same map; of an "
    "introspection, nothing tells the trained network from others, or it is on the wrong side of them.",
    "INCONCLUSIVE": "The interval lies between or across the thresholds, or there were fewer than ten networks.",
    "INVALID": "Nothing can be said: constant maps, a network whose output did not change, or a method that disagrees "
    "with itself.",
    "headline": "The one number that stands for a metric; other numbers are in the tables of the run.",
    "fill": "What stands in the place of what is removed from an input.",
    "cascade": "Randomizing a network block by block, from its output down.",
    "not applicable (n/a)": "The method makes no such claim, or the model lacks what the test needs. No failure.",
    "exam": "How a metric itself did on maps of known quality.",
}
