"""Every command that a README shows is run, and a stranger's model gets its report in five minutes."""

import re
import shlex
import shutil
import time
from contextlib import chdir
from html.parser import HTMLParser

import pytest
import torch
import typer
from commands import commands, furnish, photographs, scripts, shell, trained, typed
from readmes import READMES, ROOT, block

import harness
from harness.cli import app

SMALLER = {
    "harness run fills.yaml": "--samples 4",
    "harness plan fills.yaml": "--samples 4",
    "harness exam": "roc_auc --samples 16",
    "harness exam mine --plugin mine.py": "--samples 16",
    "harness applicability": "mlp",
    "harness show mnist-cnn": "--methods gradient,sobel --samples 1",
    # The last of two values counts, and random weights need no download.
    "harness show torchvision:resnet50 dog.jpg --weights IMAGENET1K_V2": "--weights random --methods gradient",
    "python -m harness.nulls --pairs 20": "--pairs 2",
}
"""Command -> what is added here to make it small."""

JUDGED = [
    "test_reproduction.py::test_a_reproduction_of_the_users_own_is_run_judged_and_written",
    "test_reproduction.py::test_every_built_in_study_is_one_that_can_be_run",
    "test_adebayo2018.py::test_in_the_world_of_the_paper_every_claim_is_reproduced",
]
PATH = ["test_commands.py::test_a_strangers_model_gets_its_report_within_five_minutes"]
FRESH = ["test_init.py::test_init_and_run_in_a_fresh_folder"]
SHOWN = ["test_cli.py::test_a_run_writes_tables_and_figures_and_ends_in_three_lines"]
NIGHTS = ["test_nightly.py::test_nights_are_green_until_something_is_worse"]
ELSEWHERE = {
    "harness init file:net.py:build photos --weights w.pt": PATH,
    "harness run study.yaml --save-maps": PATH,
    "harness init file:net.py:build photos --weights w.safetensors": FRESH,
    "harness run study.yaml": FRESH,
    "harness table results/study --name verdicts": SHOWN,
    "harness table results/study --pass-below 0.1 --fail-above 0.6": SHOWN,
    "harness table results/fills --name verdicts": SHOWN,
    "harness run fills.yaml --cell-seconds 600": ["test_ends.py::test_a_cell_has_its_time_and_no_more"],
    "harness run planted": [
        "test_truth.py::test_a_study_of_all_planted_tasks_is_there",
        "test_planted.py::test_a_network_learns_it_uses_the_truth_and_hardly_the_rest",
    ],
    "harness run introspection": [
        "test_introspections.py::test_the_built_in_study_asks_all_that_there_are",
        "test_activation_maximization.py::test_digits_exceed_every_natural_one_and_another_network_reads_them_only_if_"
        "something_was_learnt",
        "test_report_global.py::test_a_run_with_methods_and_introspections_has_both",
    ],
    "harness run fills.yaml --engine ray": [
        "test_cluster.py::test_the_command_line_starts_a_cluster_of_its_own_and_an_interrupt_ends_it"
    ],
    "harness run fills.yaml --engine ray --address HOST:6379": [
        "test_cluster.py::test_two_machines_compute_the_same_bits_and_a_failing_cell_is_a_failure"
    ],
    "harness compare results/base results/tonight --junit compare.xml --markdown compare.md": NIGHTS,
    "harness compare results/nightly": NIGHTS,
    "harness reproduce adebayo2018": JUDGED,
    "harness reproduce adebayo2018 --cifar cifar10 --imagenet imagenet": JUDGED,
}
"""Command -> the tests that prove what it does, where it needs minutes, another machine, or files that are not ours."""

FINDINGS = "harness doctor"
"""Exits with 1 where it finds something, and on a network as small as ours it may."""

IMAGE_AND_LINK = {"img": "src", "script": "src", "link": "href", "iframe": "src", "object": "data"}
SHOWING = [readme for readme in READMES if any(not each.startswith("make ") for each in commands(readme))]


def named(readme):
    return str(readme.relative_to(ROOT))


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("readme", SHOWING, ids=named)
def test_commands_run_in_the_order_of_the_page(readme, furnished, tmp_path):
    folder = tmp_path / "user"
    shutil.copytree(furnished, folder)
    for command in commands(readme):
        if command in ELSEWHERE or command.startswith("make "):
            continue
        code = typed(f"{command} {SMALLER.get(command, '')}", folder)
        assert code in ((0, 1) if command.startswith(FINDINGS) else (0,)), command
        for written in re.findall(r"(?:--out|--junit|--markdown|>) (\S+)", command):
            assert (folder / written).stat().st_size > 0, (command, written)


@pytest.mark.parametrize("readme", SHOWING, ids=named)
def test_every_command_is_one_that_a_test_can_run(readme):
    for command in commands(readme):
        assert re.match(r"(harness|python -m harness\.\w+|make) ?", command), command


def test_the_tests_that_stand_for_a_command_are_there():
    for tests in ELSEWHERE.values():
        for test in tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), test


def test_no_command_is_made_small_or_proved_elsewhere_that_no_page_shows():
    shown = {command for readme in READMES for command in commands(readme)}
    assert set(SMALLER) | set(ELSEWHERE) <= shown
    assert not set(SMALLER) & set(ELSEWHERE)


def test_scripts_are_those_of_the_test_of_nights():
    assert len(scripts()) == 2
    for words in ('harness compare results/base "$night"', "#SBATCH"):
        assert block("sh", words) in scripts()


def check_words(words, where):
    """Check that a command has a verb and options that there are; what it takes may be left out."""
    program = typer.main.get_command(app)
    verb, *rest = words
    assert verb in program.commands, where
    known = {option for parameter in program.commands[verb].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known | {"--help"}, where


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_commands_within_sentences_have_verbs_and_options_that_exist(readme):
    inline = re.sub(r"```.*?```", "", readme.read_text(), flags=re.DOTALL)
    for command in [
        *re.findall(r"`harness ([^`]+)`", inline),
        *(c[8:] for c in commands(readme) if c[:8] == "harness "),
    ]:
        words = shlex.split(command)
        if words[0] != "--help":
            check_words(words, command)


@pytest.mark.parametrize("verb", sorted(typer.main.get_command(app).commands))
def test_the_help_of_every_verb_has_examples_that_exist(verb):
    text = typer.main.get_command(app).commands[verb].help
    examples = re.findall(r"`harness ([^`]+)`", text)
    assert any(example.split()[0] == verb for example in examples), text
    for example in examples:
        check_words(shlex.split(example), example)


def test_the_help_of_the_command_shows_a_path_that_exists():
    text = typer.main.get_command(app).help
    steps = re.findall(r"^  harness (.*?)(?:   .*)?$", text, flags=re.MULTILINE)
    assert [step.split()[0] for step in steps] == ["doctor", "init", "run", "report", "table", "compare"]
    for step in steps:
        check_words(shlex.split(step), step)


class Loads(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        link = dict(attributes).get(IMAGE_AND_LINK.get(tag, ""), "") or ""
        if link and not link.startswith(("data:", "#")):
            self.found.append((tag, link))


@pytest.mark.slow
def test_a_strangers_model_gets_its_report_within_five_minutes(tmp_path, capsys):
    """From an empty folder, by nothing but what the README says."""
    source = block("python", "The network with new weights: the harness loads yours")
    x, y = photographs(tmp_path / "photos", side=32, count=40)
    network, accuracy = trained(source, x, y, steps=100)
    assert accuracy > 0.9
    (tmp_path / "net.py").write_text(source)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    path = [command for command in commands(ROOT / "README.md") if command.startswith("harness ")][:3]
    assert [command.split()[1] for command in path] == ["init", "run", "report"]

    begun = time.monotonic()
    for command in path:
        done = shell(command, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    seconds = time.monotonic() - begun
    with capsys.disabled():
        print(f"\nfrom a network, weights and pictures to a report: {seconds:.0f} s")
    assert seconds < 300

    scope = {"harness": harness}
    with chdir(tmp_path):
        exec(block("python", 'results.maps("gradient")'), scope)
    assert scope["kept"].maps.shape[1:] == x.shape[1:]
    assert scope["kept"].ids == scope["shown"].ids
    page = (tmp_path / "results" / "study" / "report.html").read_text()
    loads = Loads()
    loads.feed(page)
    assert loads.found == []
    for word in ("PASS", "gradient", "guided_backprop", "parameter_randomization"):
        assert word in page
