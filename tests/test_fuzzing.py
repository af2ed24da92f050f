"""A few damaged files of every format; `make fuzz` tries many."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzzing import NAMES, damaged, demand_answer, sound_files

PLACES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6)


@pytest.mark.parametrize("name", NAMES)
def test_the_sound_file_is_read(name, tmp_path):
    assert demand_answer(name, sound_files()[name][1], tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_gives_a_case_or_a_message(name, tmp_path):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(PLACES, st.one_of(st.just(1.0), st.floats(0, 1)))
    def tried(places, cut):
        demand_answer(name, damaged(sound_files()[name][1], places, cut), tmp_path)

    tried()
