"""Perturbations: repeatable, logged, of the stated rates, and never wider than texts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2v.core.errors import SettingsError
from r2v.domains.household import DOMAIN
from r2v.perturbations import FAMILIES, family_of

LISTED = "You arrive at shelf 1. On the shelf 1, you see a book 1, a pen 2, a cup 1, and a pen 1."
PLACES = ["cabinet 2", "cabinet 1", "shelf 1", "bed 1"]
ROOM = f"Looking quickly around you, you see a {', a '.join(PLACES[:-1])}, and a {PLACES[-1]}."
GOAL = "put some pen on drawer."


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FAMILIES), st.text(max_size=80) | st.just(LISTED), st.integers(0, 2**40), st.floats(0, 4))
def test_repeatable_and_logged_for_any_text(family, text, seed, strength):
    def apply(strength):
        return DOMAIN.perturbation(family, strength, GOAL).apply(text, where="observation", previous="x", seed=seed, t=3)

    assert apply(strength) == apply(strength)
    assert apply(0.0) == (text, ())
    changed, changes = apply(strength)
    assert changes or changed == text
    assert all(change.family == family and change.detail for change in changes)


@pytest.mark.parametrize(
    ("family", "operator", "probability"),
    [
        ("flaky", "result shuffle", 0.20 * 23 / 24),  # one order in 24 is the old one
        ("flaky", "failure", 0.15),
        ("flaky", "timeout", 0.05),
        ("partial", "truncation", 0.20),
        ("partial", "information mask", 0.05),
        ("inject", "direct", 0.15),
        ("inject", "encoded", 0.03),
        ("distract", "semantic distractor", 0.20),
        ("distract", "decoy", 0.10),
    ],
)
def test_operators_act_at_their_rates(family, operator, probability):
    n = 4000
    perturbation = DOMAIN.perturbation(family, 1.0, GOAL)
    seen = Counter(
        change.operator
        for seed in range(n)
        for change in perturbation.apply(LISTED, where="observation", previous="Nothing happens.", seed=seed, t=1)[1]
    )
    sigma = (n * probability * (1 - probability)) ** 0.5
    # Within 4.5 sigma; an operator may also meet a text that an earlier one has replaced, hence the slack below.
    assert n * probability - 4.5 * sigma - 0.05 * n * probability <= seen[operator] <= n * probability + 4.5 * sigma


def test_the_first_observation_keeps_all_its_places():
    for family in FAMILIES:
        for seed in range(300):
            text, _ = DOMAIN.perturbation(family, 3.0, GOAL).apply(ROOM, where="observation", previous="", seed=seed, t=0)
            kept = [name for name in PLACES if name in text]
            assert len(kept) >= len(PLACES) - 1  # a mask may hide one name


def test_only_injections_touch_the_goal():
    for family in FAMILIES:
        changed = {
            DOMAIN.perturbation(family, 5.0, GOAL).apply(GOAL, where="goal", previous="", seed=seed, t=0)[0]
            for seed in range(200)
        }
        assert all(text.startswith(GOAL) for text in changed)
        assert (len(changed) > 1) == (family == "inject")


def test_four_seeds_in_a_row_give_each_task_each_family_once():
    for i in range(20):
        assert {family_of(f"task {i}", z) for z in range(5, 9)} == set(FAMILIES)
    assert family_of("task", 0) == "none"
    firsts = Counter(family_of(f"task {i}", 1) for i in range(400))
    assert min(firsts.values()) > 60


def test_unknown_families_are_refused():
    with pytest.raises(SettingsError, match="there are flaky"):
        DOMAIN.perturbation("weather", 1.0, GOAL)
