"""What stands in .github is valid, and names commands that exist."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from packaging.specifiers import SpecifierSet

from smml.cli import app

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / ".github").rglob("*.yml"))
COMMANDS = typer.main.get_command(app).commands


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_yaml_and_its_commands_exist(path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", text):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for command in re.findall(r"`smml ([a-z-]+)", text):
        assert command in COMMANDS, command


def test_the_workflow_runs_what_ci_runs_and_may_write_nothing():
    workflow = read("workflows/test.yml")
    assert workflow["permissions"] == {"contents": "read"}
    steps = {name: job["steps"] for name, job in workflow["jobs"].items()}
    assert ".ci/run" in [step.get("run") for step in steps["test"]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for job, of_job in steps.items():
        assert "permissions" not in workflow["jobs"][job]
        versions = [step["with"]["python-version"] for step in of_job if "setup-python" in step.get("uses", "")]
        assert versions, f"{job} takes any Python"
        assert all(SpecifierSet(project["requires-python"]).contains(version) for version in versions)


def test_a_report_of_a_bug_needs_command_message_and_what_smml_info_says():
    form = read("ISSUE_TEMPLATE/bug.yml")
    assert {"name", "description", "body"} <= set(form)
    assert {part["type"] for part in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    fields = {part["id"]: part for part in form["body"] if part["type"] != "markdown"}
    assert len(fields) == sum(part["type"] != "markdown" for part in form["body"])
    required = {name for name, part in fields.items() if part.get("validations", {}).get("required")}
    assert required == {"command", "message", "info"}
    assert "`smml info`" in fields["info"]["attributes"]["label"]
