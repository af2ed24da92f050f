"""Which patients each strategy takes, on points of a plane that can be looked at."""

import numpy as np
import pytest

from samadapt.suggest.strategies import STRATEGIES, Candidates, pick
from samadapt.types import SamAdaptError


def plane(points, labelled=(), uncertainty=None, seed=0):
    """Points as they are, in this order, so that the answers can be read off."""
    names = tuple(points)
    return Candidates(
        names,
        np.array([points[n] for n in names], float),
        np.array(labelled, float).reshape(-1, 2),
        None if uncertainty is None else np.array([uncertainty[n] for n in names]),
        seed,
    )


def names_of(picks):
    return [each.patient for each in picks]


LINE = {"a": (0, 0), "b": (1, 0), "c": (2, 0), "d": (6, 0), "e": (10, 0)}


def test_coverage_is_the_farthest_first():
    picks = pick("coverage", plane(LINE, labelled=[(0, 0)]), 3)
    assert names_of(picks) == ["e", "d", "c"]  # 10 away; then d (4 from e); then c (2 from the labelled one)
    assert [each.distance for each in picks] == [10, 4, 2]
    assert "distance 10.0" in picks[0].reason


def test_coverage_begins_in_the_middle_where_nothing_is_labelled():
    picks = pick("coverage", plane(LINE), 3)
    assert names_of(picks) == ["c", "e", "d"] and picks[0].distance is None


def test_uncertainty_takes_the_least_sure_in_order():
    unsure = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.4, "e": 0.2}
    picks = pick("uncertainty", plane(LINE, uncertainty=unsure), 3)
    assert names_of(picks) == ["b", "d", "c"] and [p.uncertainty for p in picks] == [0.5, 0.4, 0.3]


def test_both_weighs_one_with_the_other():
    """b is the least sure and lies beside a label; e is far and certain; d has some of both."""
    unsure = {"a": 0.0, "b": 0.9, "c": 0.3, "d": 0.5, "e": 0.1}
    picks = pick("both", plane(LINE, labelled=[(0, 0)], uncertainty=unsure), 2)
    assert names_of(picks) == ["d", "b"]  # 6 x 0.5; then 1 x 0.9 against 2 x 0.3 and 4 x 0.1
    first = pick("both", plane(LINE, uncertainty=unsure), 1)
    assert names_of(first) == ["b"] and "no labelled patient is known" in first[0].reason


def clusters(rng, sizes=(9, 7, 5)):
    """Round clusters, each with one point in its centre, which is called m0, m1, ..."""
    found = {}
    for number, (size, centre) in enumerate(zip(sizes, ((0, 0), (20, 0), (0, 20)), strict=True)):
        found[f"m{number}"] = centre
        angles = np.linspace(0, 2 * np.pi, size - 1, endpoint=False) + rng.random()
        found |= {
            f"{number}_{i}": (centre[0] + np.cos(t), centre[1] + np.sin(t)) for i, t in enumerate(angles)
        }
    return found


def test_typical_takes_the_centres_of_the_largest_clusters():
    points = clusters(np.random.default_rng(0))
    assert names_of(pick("typical", plane(points), 3)) == ["m0", "m1", "m2"]
    assert "a cluster of 9 patients, none of them labelled" in pick("typical", plane(points), 3)[0].reason


def test_typical_leaves_clusters_that_have_a_label():
    points = clusters(np.random.default_rng(0))
    picks = pick("typical", plane(points, labelled=[(0.1, 0.1)]), 2)
    assert names_of(picks) == ["m1", "m2"]


def test_typical_of_patients_that_are_all_alike_takes_as_many_as_were_asked_for():
    picks = pick("typical", plane({name: (1, 1) for name in "abcd"}), 3)
    assert len(set(names_of(picks))) == 3 and "labelled or chosen" in picks[1].reason


def features(count=12):
    rng = np.random.default_rng(1)
    return {f"p{i}": rng.normal(size=6) for i in range(count)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_gives_the_same_patients_in_whatever_order_they_come(strategy):
    own = features()
    turned = dict(reversed(own.items()))
    unsure = {name: float(abs(x[0])) for name, x in own.items()}
    one, other = (
        pick(strategy, Candidates.of(points, [own["p0"]], unsure, seed=3), 5) for points in (own, turned)
    )
    assert one == other and len(set(names_of(one))) == 5


def test_random_follows_the_seed_and_keeps_its_order_when_the_pool_grows():
    own = features()
    draws = {tuple(names_of(pick("random", Candidates.of(own, seed=s), 4))) for s in range(20)}
    assert len(draws) > 10
    order = names_of(pick("random", Candidates.of(own, seed=1), 12))
    fewer = {name: x for name, x in own.items() if name != order[3]}
    assert names_of(pick("random", Candidates.of(fewer, seed=1), 11)) == order[:3] + order[4:]


def test_features_of_any_scale_count_alike():
    rng = np.random.default_rng(0)
    points = {f"p{i}": rng.normal(size=2) for i in range(10)}
    scaled = {name: x * (1, 1e4) + (5, 0) for name, x in points.items()}
    assert names_of(pick("coverage", Candidates.of(points), 4)) == names_of(
        pick("coverage", Candidates.of(scaled), 4)
    )
    flat = {name: np.array([x[0], 7.0]) for name, x in points.items()}  # one that never differs says nothing
    assert np.isfinite(Candidates.of(flat).features).all()


@pytest.mark.parametrize("strategy", [name for name, each in STRATEGIES.items() if each.needs_model])
def test_what_needs_a_model_says_so(strategy):
    with pytest.raises(
        SamAdaptError, match=r"there is no model; give a RUN, or .*: random, coverage, typical"
    ):
        pick(strategy, Candidates.of(features()), 2)


@pytest.mark.parametrize("k", [0, 13])
def test_a_number_that_the_pool_does_not_have_is_refused(k):
    with pytest.raises(SamAdaptError, match=rf"{k} patients were asked for, and the pool has 12"):
        pick("random", Candidates.of(features()), k)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(SamAdaptError, match="unknown strategy 'badge'; known: random"):
        pick("badge", Candidates.of(features()), 2)
