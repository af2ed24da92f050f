"""What the documents tell a user to type exists."""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import typer

import samadapt
from samadapt.cli import app
from samadapt.experiment.from_file import make_study, read_settings
from test_architecture import DOORS, ROOMS

ROOT = Path(__file__).parents[1]
DOCS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS]
ARCHITECTURE = ROOT / "docs/architecture.md"


def commands(text: str) -> list[list[str]]:
    """Lines of code blocks that begin with `samadapt`, as words, without their comments."""
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("samadapt ")]


def problems(words: list[str]) -> list[str]:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if words[1] not in verbs:
        return [f"no command {words[1]}"]
    known = {option for parameter in verbs[words[1]].params for option in parameter.opts}
    return [
        f"{words[1]} has no option {word}" for word in words if word.startswith("--") and word not in known
    ]


@pytest.mark.parametrize(("page", "at_least"), [("README.md", 10), *((page, 0) for page in DOCS)])
def test_every_command_exists(page, at_least):
    found = commands((ROOT / page).read_text())
    assert len(found) >= at_least
    assert [problem for words in found for problem in problems(words)] == []


def test_the_check_sees_a_wrong_command():
    assert problems(["samadapt", "fly"]) and problems(["samadapt", "train", "DATA", "--wings", "2"])
    assert commands("```\nsamadapt train DATA --labels 5  # five\nls\n```") == [
        ["samadapt", "train", "DATA", "--labels", "5"]
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.toml")), ids=lambda path: path.stem)
def test_every_grid_is_a_study_and_says_how_to_run_it(path):
    told = [
        line.removeprefix("# ") for line in path.read_text().splitlines() if "samadapt experiment" in line
    ]
    words = [shlex.split(line) for line in told]
    assert words and [problem for line in words for problem in problems(line)] == []
    assert all(f"benchmarks/{path.name}" in line for line in words)
    heads = {learner.get("head") for learner in read_settings(path).get("learner", {}).values()}
    task = "classification" if heads & {"plain", "slca"} else "segmentation"
    grid, config = make_study(read_settings(path), task)
    assert grid.methods and config.steps


def test_every_name_of_the_readmes_python_exists():
    names = set(re.findall(r"\bsa\.(\w+)", (ROOT / "README.md").read_text()))
    assert len(names) > 3
    assert names <= set(samadapt.__all__)


def test_every_public_name_can_be_loaded():
    for name in samadapt.__all__:
        assert getattr(samadapt, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = samadapt.nothing_like_it


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text())
    assert [t for t in targets if not ((ROOT / page).parent / t).exists()] == []


def test_every_target_of_the_readme_is_in_the_makefile():
    targets = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= targets
    assert [t for t in targets if f"\n{t}:" not in makefile] == []


def modules_of_the_page() -> dict[str, set[str]]:
    """Module -> what else it may import, as the table of the architecture page says."""
    page = ARCHITECTURE.read_text().split("## Modules")[1].split("## On disk")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\|([^|]*)\|$", page, flags=re.MULTILINE)
    return {name: set(imports.split()) for name, imports in rows}


def test_the_table_of_modules_is_the_one_that_the_imports_are_held_to():
    assert modules_of_the_page() == ROOMS


def test_every_module_stands_in_the_table():
    source = ROOT / "src" / "samadapt"
    real = {p.stem for p in source.glob("*.py")} | {p.parent.name for p in source.glob("*/__init__.py")}
    assert real - DOORS == set(modules_of_the_page())


def ways_of_the_data() -> dict[str, list[str]]:
    """Heading -> the functions that the data pass."""
    sections = (
        ARCHITECTURE.read_text().split("## The way of the data")[1].split("\n## ")[0].split("\n### ")[1:]
    )
    return {
        section.splitlines()[0]: re.findall(r"^\d\. `([\w.]+)`", section, flags=re.MULTILINE)
        for section in sections
    }


def test_the_ways_of_the_data_are_short_and_do_not_go_back():
    ways = ways_of_the_data()
    assert len(ways) == 3
    for stops in ways.values():
        assert 5 <= len(stops) < 10
        assert len(set(stops)) == len(stops)


@pytest.mark.parametrize("stop", sorted({stop for stops in ways_of_the_data().values() for stop in stops}))
def test_every_stop_of_the_data_exists(stop):
    assert callable(pkgutil.resolve_name(f"samadapt.{stop}"))
