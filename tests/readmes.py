"""The READMEs, and the blocks of code in them, found by what they say."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("README.md", "*/README.md", "harness/*/README.md", "results/reference/**/README.md")
READMES = sorted({path for place in PLACES for path in ROOT.glob(place) if path.is_file()})


def blocks(language, readme=None):
    """All blocks in a language, of one README or of all."""
    texts = [path.read_text() for path in ([readme] if readme else READMES)]
    return [found for text in texts for found in re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)]


def block(language, words):
    """The one block that has these words."""
    (found,) = [each for each in blocks(language) if words in each]
    return found
