"""The pages beside the code: what they link to is there, and the glossary and the citation hold what they promise."""

import re
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import quote_scores
import yaml

import smml
from smml import course
from smml.modalities import SUBSETS, subset_name
from smml.sam.training import scenes
from smml.study.presets import STUDIES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [*(page for part in ("docs", "results", "smml") for page in (ROOT / part).rglob("*.md")), *ROOT.glob("*.md")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_that_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), f"{target} is not there"


def test_files_that_the_guide_for_contributors_names_are_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"pytest ((?:tests/\S+ ?)+)", guide)[0].split():
        assert (ROOT / name).exists(), name
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", guide):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def cohort_seeds() -> list[tuple[int, str, str]]:
    """Seed, purpose and file of each row of the table in CONVENTIONS."""
    text = (ROOT / "docs" / "CONVENTIONS.md").read_text(encoding="utf-8")
    table = text.split("<!-- cohort seeds -->")[1].split("<!-- end of cohort seeds -->")[0]
    return [
        (int(seed), purpose, file)
        for seed, purpose, file in re.findall(r"^\| (\d+) \| (.+?) \| (\S*) ?\|$", table, re.M)
    ]


def test_a_cohort_seed_has_one_purpose_and_a_purpose_one_seed():
    seeds, purposes, _ = zip(*cohort_seeds(), strict=True)
    assert len(seeds) == len(set(seeds))
    assert list(seeds) == sorted(seeds)
    assert len(purposes) == len(set(purposes))


def test_a_cohort_seed_stands_in_the_file_that_its_row_names():
    """A study's held-out subjects have the seed after that of its training subjects: only the latter stands there."""
    for seed, purpose, file in cohort_seeds():
        named = seed - 1 if purpose.startswith("study") and purpose.endswith("held out") else seed
        assert not file or re.search(rf"\b{named}\b", (ROOT / file).read_text(encoding="utf-8")), (seed, file)


def test_the_cohorts_that_the_code_simulates_are_in_the_table():
    known = {seed for seed, _, _ in cohort_seeds()}
    studies = {preset.data_seed + held_out for preset in STUDIES.values() for held_out in (0, 1)}
    course_ = {course.TRAINING_SEED, course.HELD_OUT_SEED}
    assert studies | course_ | {scenes.TRAINING_SEED, scenes.HELD_OUT_SEED} <= known


def glossary() -> dict[str, list[tuple[str, str]]]:
    """By section: the entries, each with its term and its text."""
    text = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    pattern = re.compile(r"^- \*\*(.+?)\*\*(.+(?:\n  .+)*)", re.MULTILINE)
    return {part.partition("\n")[0]: pattern.findall(part) for part in sections}


def test_every_entry_of_the_glossary_says_where_its_term_matters():
    entries = [entry for part in glossary().values() for entry in part]
    assert len({term for term, _ in entries}) == len(entries)
    for term, text in entries:
        assert re.search(r"\[[^\]]+\]\([^)]+\)\s*$", text), f"{term} has no link"


@pytest.mark.parametrize("section", glossary())
def test_terms_are_in_alphabetical_order(section):
    terms = [term.lower() for term, _ in glossary()[section]]
    assert terms == sorted(terms)


def test_the_citation_is_of_this_version_and_of_the_method():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == smml.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project, "it is told in smml/__init__.py alone"
    for field in ("authors", "license", "keywords"):
        assert citation[field] == project[field], field
    assert project["urls"] == {"Paper": citation["preferred-citation"]["url"]}
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2507.07592"
    assert f"## {smml.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", quote_scores.PAGES)
def test_the_scores_that_a_page_quotes_are_the_committed_ones(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.search(r"<!-- scores: \S+ -->\n\|", text), "no marked scores"
    assert text == quote_scores.filled(text), "run: python scripts/quote_scores.py"


def test_weights_that_ship_have_been_scored_on_the_patients_from_every_subset():
    looks = pd.read_csv(ROOT / "results" / "patients" / "looks.csv").query("group == 'all'")
    for weights, name in quote_scores.LOOKED_AT.items():
        assert (ROOT / "smml" / "weights" / f"{weights}.safetensors").exists()
        assert set(looks.loc[looks["weights"] == name, "subset"]) == set(map(subset_name, SUBSETS)), name
