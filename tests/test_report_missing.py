"""A verdict when cells are missing: what is compared, what is said, and how often chance is called a difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from samadapt.records import Score
from samadapt.report import read_study, results_table, write_report
from samadapt.report.comparisons import all_means, compare_all
from samadapt.report.reading import CellResults, Level, MethodInfo, StudyResults
from samadapt.report.verdict import Verdict, judge
from synthetic_study import ROLES, fail, make_study

#: (learner, seed) -> "failed" or "pending"
Missing = dict[tuple[str, int], str]


def simulated(
    rng: np.random.Generator, quality: dict[str, float], seeds: int, missing: Missing, patients: int = 12
) -> StudyResults:
    """A study at one level in memory: patients differ, draws of the labelled ones are easy or hard, for each learner."""
    cases = tuple(f"p{n:02d}" for n in range(patients))
    hard = rng.normal(0, 0.05, patients)
    cells = []
    for learner, mean in quality.items():
        own = rng.normal(0, 0.03, patients)  # patients that suit this learner
        for seed in range(seeds):
            draw = rng.normal(0, 0.06)
            dice = np.clip(mean + hard + own + draw + rng.normal(0, 0.02, patients), 0, 1)
            what = missing.get((learner, seed))
            scores = tuple(Score(c, "LV", "dsc", float(d)) for c, d in zip(cases, dice, strict=True))
            labelled = ("a", "b")
            cells.append(
                CellResults(
                    f"{learner}{seed}",
                    learner,
                    2,
                    seed,
                    labelled,
                    () if what else scores,
                    failure="x" if what == "failed" else None,
                )
            )
    note = {"data": {"task": "segmentation", "name": "s"}, "protocol": {"stacked": True}}
    learners = {n: MethodInfo.of(n, {"role": ROLES.get(n, "contender"), "learns": True}) for n in quality}
    return StudyResults(Path("nowhere"), note, learners, tuple(cells), (Level(2, 2),), cases, ("LV",), cases)


def verdict(study: StudyResults) -> Verdict:
    means = all_means(study, "dsc")
    return judge(study, means, compare_all(study, means, "dsc"), "dsc")


NULL = {"fused": 0.8, "linear": 0.8, "unet": 0.8, "simclr": 0.8}
SITUATIONS: dict[str, tuple[dict[str, float], int, Missing]] = {
    "complete": (NULL, 3, {}),
    "two baselines, one failed in two of three": (NULL, 3, {("unet", 1): "failed", ("unet", 2): "failed"}),
    "the baseline failed in two of three": (
        {"fused": 0.8, "unet": 0.8},
        3,
        {("unet", 1): "failed", ("unet", 2): "failed"},
    ),
    "one seed": ({"fused": 0.8, "unet": 0.8}, 1, {}),
    "a head failed once": (NULL, 3, {("fused", 0): "failed"}),
    "each failed once": (NULL, 3, {("fused", 0): "failed", ("unet", 1): "failed", ("simclr", 2): "failed"}),
    "two seeds": ({"fused": 0.8, "unet": 0.8}, 2, {}),
    "a baseline did not run yet": (NULL, 3, {("unet", n): "pending" for n in range(3)}),
    "unfinished": (NULL, 3, {("unet", 2): "pending", ("simclr", 2): "pending", ("linear", 2): "pending"}),
}


def kinds_of(situation: str, studies: int) -> list[str]:
    quality, seeds, missing = SITUATIONS[situation]
    rng = np.random.default_rng(0)
    return [verdict(simulated(rng, quality, seeds, missing)).conclusions[0].kind for _ in range(studies)]


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS)
def test_chance_is_called_a_difference_in_at_most_five_of_a_hundred_of_many_studies(
    situation: str, capsys
) -> None:  # type: ignore[no-untyped-def]
    studies = 400
    false = kinds_of(situation, studies).count("head")
    with capsys.disabled():
        print(f"\n{situation}: a false use in {false} of {studies} studies")
    assert false <= 0.05 * studies


@pytest.mark.parametrize("situation", SITUATIONS)
def test_chance_is_called_a_difference_in_at_most_five_of_a_hundred_studies(situation: str) -> None:
    """All learners are equally good; draws of the labelled patients matter more than anything else."""
    kinds = kinds_of(situation, studies=40)
    assert kinds.count("head") <= 2
    _, seeds, missing = SITUATIONS[situation]
    quality = SITUATIONS[situation][0]
    if seeds == 1 or (len([s for n, s in missing if n == "unet"]) == 2 and len(quality) == 2):
        assert kinds.count("head") + kinds.count("baseline") == 0


def test_a_large_difference_is_still_shown() -> None:
    rng = np.random.default_rng(0)
    quality = {"fused": 0.85, "unet": 0.55, "simclr": 0.5}
    whole = [verdict(simulated(rng, quality, 5, {})).conclusions[0].kind for _ in range(20)]
    assert whole.count("head") >= 16
    failed = [
        verdict(simulated(rng, quality, 5, {("simclr", 1): "failed"})).conclusions[0].kind for _ in range(20)
    ]
    assert failed.count("head") >= 14


def test_the_best_baseline_is_that_of_the_seeds_in_common(tmp_path: Path) -> None:
    """unet's hard draws failed; over the one it has left it would look best, and the head would beat it by chance."""
    rng = np.random.default_rng(1)
    study = simulated(
        rng, {"fused": 0.8, "unet": 0.8, "simclr": 0.7}, 4, {("unet", 0): "failed", ("unet", 1): "failed"}
    )
    (row, *_) = [c for c in compare_all(study, all_means(study, "dsc"), "dsc") if c.learner == "fused"]
    assert row.seeds == (2, 3) and row.difference.n_seeds == 2
    assert row.difference.mean == pytest.approx(row.ours - row.theirs)


def test_a_baseline_that_is_not_counted_is_named_and_must_not_be_better(tmp_path: Path) -> None:
    for quality, kind in ((0.7, "head"), (0.97, "unfinished baseline")):
        folder = make_study(
            tmp_path / str(quality), {"fused": 0.9, "unet": quality, "simclr": 0.7}, labels=(5,)
        )
        for seed in (1, 2):
            fail(folder, "unet", 5, seed, "x")
        found = verdict(read_study(folder))
        assert found.conclusions[0].kind == kind
        if kind == "head":
            assert "(not counted: U-Net, 1 of 3 seeds finished)" in found.sentence
        else:
            end = (
                "but not than a baseline of which too few seeds have finished (U-Net, 1 of 3 seeds finished)."
            )
            assert found.sentence.endswith(f"{end[:-1]} (2 of 9 runs failed).")


# ---------------------------------------------------------------- what is said


def test_missing_cells_are_named(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "e", {"fused": 0.86, "linear": 0.8, "unet": 0.78}, labels=(5,))
    for seed in (1, 2):
        fail(folder, "unet", 5, seed, "out of memory")
    page = write_report(folder).read_text()
    assert (
        "Not decided: with 5 labelled patients, fused and U-Net have only one finished seed in common" in page
    )
    assert "(2 of 9 runs failed)" in page
    assert "With 5 labelled patients, seeds 1, 2 of U-Net failed." in page
    assert "With 5 labelled patients, fused is compared over 1 of 3 planned seeds (0)" in page
    assert ", 1 of 3 seeds" in page  # beside the mean of U-Net
    table = results_table(folder)
    assert "1 of 3 cells" in table and "[lowest to highest seed]" in table


def test_an_unfinished_study_says_so_and_never_that_there_is_no_baseline(tmp_path: Path) -> None:
    folder = make_study(
        tmp_path / "e", {"fused": 0.86, "linear": 0.7, "unet": 0.78, "simclr": 0.7}, labels=(5,)
    )
    for learner in ("unet", "simclr", "linear"):
        for seed in (0, 1, 2):
            digest = fail(folder, learner, 5, seed, "x")
            (folder / digest / "failed.json").unlink()
    for seed in (1,):
        (folder / fail(folder, "fused", 5, seed, "x") / "failed.json").unlink()
    sentence = verdict(read_study(folder)).sentence
    assert sentence.startswith(
        "Unfinished, 2 of 12 runs have scores: with 5 labelled patients, nothing can be decided yet: "
    )
    assert "seeds 0, 1, 2 of U-Net have not run yet" in sentence and "no baseline" not in sentence
    assert "0 of 3 cells" in results_table(folder)


def test_a_baseline_that_failed_everywhere_is_said_to_have_failed(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "e", {"fused": 0.86, "unet": 0.78}, labels=(5,))
    for seed in (0, 1, 2):
        fail(folder, "unet", 5, seed, "no memory")
    sentence = verdict(read_study(folder)).sentence
    assert (
        "there is nothing to compare: seeds 0, 1, 2 of U-Net failed" in sentence
        and "no baseline" not in sentence
    )


def test_a_study_that_waits_for_a_baseline_does_not_advise_a_head(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "e", {"fused": 0.9, "unet": 0.7, "nnunet": 0.7}, labels=(5,))
    assert verdict(read_study(folder)).conclusions[0].kind == "head"
    for seed in (0, 1, 2):
        (folder / fail(folder, "nnunet", 5, seed, "x") / "failed.json").unlink()
    found = verdict(read_study(folder))
    assert (
        found.conclusions[0].kind == "waiting"
        and "seeds 0, 1, 2 of nnU-Net have not run yet" in found.sentence
    )


def test_brackets_say_what_they_are(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(1, 5))
    page = write_report(folder).read_text()
    assert (
        "in brackets its 95 % confidence interval over the scored patients and over the draws of"
        in " ".join(page.split())
    )
    assert "predicted, but no overlap (Dice 0)" in page and "inference time per case (s)" in page
    assert (folder / "comparisons.csv").read_text().splitlines()[0].split(",")[8:10] == [
        "ci95_low",
        "ci95_high",
    ]
