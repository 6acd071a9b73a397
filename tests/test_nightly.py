"""A night from end to end, by the scripts that the READMEs show."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from readmes import block

NIGHTLY = block("sh", 'harness compare results/base "$night"')
SLURM = block("sh", "#SBATCH")
WORKFLOW = block("yaml", "runs-on")


def study(steps):
    return yaml.safe_dump(
        {
            "name": "nightly",
            "data": {"source": "digits", "samples": 30},
            "models": [{"name": "mlp", "source": "mlp", "weights": "random"}],
            "methods": ["gradient", {"name": "path", "method": "integrated_gradients", "steps": steps}],
            "metrics": ["completeness"],
            "controls": False,
        }
    )


@pytest.fixture
def shell(tmp_path):
    """Run a script where `harness` is the installed command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md")}

    def run(script):
        return subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_nights_are_green_until_something_is_worse(shell, tmp_path):
    (tmp_path / "nightly.sh").write_text(NIGHTLY)
    codes = []
    for steps in (32, 32, 1, 32):
        (tmp_path / "study.yaml").write_text(study(steps))
        done = shell("sleep 1; sh nightly.sh")
        codes.append(done.returncode)
        suite = ET.parse(tmp_path / "compare.xml").getroot()
        assert int(suite.get("failures")) == codes[-1], done.stderr
    assert codes == [0, 0, 1, 0]
    (tmp_path / "study.yaml").write_text("name: broken\nmodels: [no-such-model]\n")
    assert shell("sleep 1; sh nightly.sh").returncode == 2
    chart = shell("harness compare results/nightly")
    assert chart.returncode == 0, chart.stderr
    assert (tmp_path / "results/nightly/control_chart.png").exists()


@pytest.mark.slow
def test_the_workflow_runs_its_own_steps(shell, tmp_path):
    workflow = yaml.safe_load(WORKFLOW)
    # YAML takes the key for a boolean.
    assert workflow[True]["schedule"][0]["cron"].split() == ["0", "2", "*", "*", "*"]
    (tmp_path / "nightly.sh").write_text(NIGHTLY)
    (tmp_path / "study.yaml").write_text(study(32))
    for step in workflow["jobs"]["nightly"]["steps"]:
        if "run" in step and not step["run"].startswith("pip install"):
            done = shell(step["run"])
            assert done.returncode == 0, done.stderr
    assert "green" in (tmp_path / "step.md").read_text()


@pytest.mark.slow
def test_the_job_of_a_cluster_runs_and_goes_on_where_it_was(shell, tmp_path):
    (tmp_path / "study.yaml").write_text(study(32))
    for _ in range(2):
        done = shell(f"SLURM_JOB_ID=7 SLURM_SUBMIT_DIR='{tmp_path}'; export SLURM_JOB_ID SLURM_SUBMIT_DIR\n{SLURM}")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "results/slurm-7/tables/comparisons.csv").exists()
