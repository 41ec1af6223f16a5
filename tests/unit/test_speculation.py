"""When and how far to draft: by times and acceptance that are made up, so that all can be counted."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pareflow.runtime.decoding import speculation
from pareflow.runtime.decoding.speculation import Share, Speculation


def settled(**settings: float | bool) -> Speculation:
    """Plain steps of one second each were seen."""
    made = Speculation(**settings)  # type: ignore[arg-type]
    for _ in range(speculation.PLAIN_STEPS):
        made.observe(0, 0, 1.0)
    return made


def decode(
    chosen: Speculation, tokens: int, acceptance: float, cost: float, seed: int = 0
) -> tuple[int, float]:
    """So many tokens of independent chance, or a few more, and the seconds they took; a plain one takes 1."""
    chance, made, seconds = random.Random(seed), 0, 0.0
    while made < tokens:
        asked, accepted = chosen.length(100), 0
        while accepted < asked and chance.random() < acceptance:
            accepted += 1
        chosen.observe(asked, accepted, 1 + asked * cost)
        made, seconds = made + accepted + 1, seconds + 1 + asked * cost
    return made, seconds


def test_gain_is_that_of_the_paper() -> None:
    """Leviathan et al., theorem 3.8, by hand: (1 - 0.8^5) / (0.2 × (4 × 0.2 + 1)) = 0.67232 / 0.36."""
    chosen = settled()
    chosen.observe(5, 4, 2.0)  # 4 of 5 tried right; 5 tokens took 1 s more than a plain step
    assert chosen.cost == pytest.approx(0.2)
    assert chosen.gain(4) == pytest.approx(1.867556, abs=1e-6)
    assert Speculation().gain(3) == pytest.approx(
        1 / 2.5
    )  # nothing known: nothing accepted, half a step each


def test_a_rejected_token_ends_what_was_tried() -> None:
    """Of 4 drafted tokens the second is wrong: two were tried, one was right."""
    chosen = settled()
    chosen.observe(4, 1, 1.4)
    assert chosen.gain(1) == pytest.approx((1 + 1 / 2) / (1 + 0.1))


def test_how_long_a_plain_step_takes_is_known_before_anything_is_drafted() -> None:
    chosen = Speculation(automatic=False)
    asked = []
    for _ in range(speculation.PLAIN_STEPS + 1):
        asked.append(chosen.length(9))
        chosen.observe(asked[-1], 0, 1.0)
    assert asked == [0] * speculation.PLAIN_STEPS + [speculation.PROBE_LENGTH]


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    chosen = settled(length=6, automatic=False)
    assert [chosen.length(room) for room in (0, 1, 4, 6, 9)] == [0, 1, 4, 6, 6]


@pytest.mark.parametrize(("acceptance", "cost"), [(0.8, 0.25), (0.6, 0.1), (0.95, 0.2)])
def test_a_good_draft_is_found_and_used_at_nearly_its_best_length(acceptance: float, cost: float) -> None:
    def gain(length: int) -> float:
        return (1 - acceptance ** (length + 1)) / (1 - acceptance) / (length * cost + 1)

    best = max(gain(length) for length in range(1, speculation.MOST + 1))
    made, seconds = decode(Speculation(), 20_000, acceptance, cost)
    assert made / seconds > 0.9 * best
    assert made / seconds > 1.3


@pytest.mark.parametrize(("acceptance", "cost"), [(0.0, 0.3), (0.3, 0.6), (0.1, 1.5)])
def test_a_bad_draft_is_left_off_and_tried_again_now_and_then(acceptance: float, cost: float) -> None:
    chosen = Speculation()
    made, seconds = decode(chosen, 20_000, acceptance, cost)
    assert made / seconds > 0.985
    assert chosen.figures()["probes"] >= 3
    assert chosen.best == 0
    made, seconds = decode(Speculation(automatic=False), 20_000, acceptance, cost)
    assert made / seconds < 0.85  # which is what the switch is for


def test_a_draft_that_gets_good_is_noticed() -> None:
    chosen = Speculation()
    decode(chosen, 5_000, 0.0, 0.2)
    assert chosen.best == 0
    made, seconds = decode(chosen, 5_000, 0.85, 0.2)
    assert made / seconds > 1.3
    made, seconds = decode(chosen, 5_000, 0.0, 0.2)
    assert made / seconds > 0.97
    assert chosen.best == 0


def test_a_draft_that_gets_bad_loses_no_more_than_was_saved() -> None:
    """What is known of it changes slowly, since long drafts were right for long."""
    chosen = Speculation()
    decode(chosen, 5_000, 0.99, 0.5)
    made, seconds = decode(chosen, 300, 0.0, 0.5)
    assert seconds - made < speculation.MOST_SAVED + 0.01 * made + 1
    assert chosen.best > 0  # it would go on


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, speculation.MOST]), st.integers(1, 300)), max_size=20),
    st.floats(0, 2),
    st.sampled_from([0.01, 0.05]),
)
@example([(0, 409), (speculation.MOST, 4), (0, 30)], 0.3, 0.01)  # the first probe finds it good, just then
def test_never_on_credit(stretches: list[tuple[int, int]], cost: float, max_loss: float) -> None:
    """However many are right, and for how long: what is lost was put aside, but for one probe's surprise."""
    chosen = Speculation(max_loss=max_loss)
    made, seconds = 0, 0.0
    for number in (right for right, rounds in stretches for _ in range(rounds)):
        asked = chosen.length(100)
        accepted = min(asked, number)
        chosen.observe(asked, accepted, 1 + asked * cost)
        made, seconds = made + accepted + 1, seconds + 1 + asked * cost
    surprise = speculation.PROBE_ROUNDS * speculation.PROBE_LENGTH * max(0, cost - speculation.UNKNOWN_COST)
    assert seconds <= made * (1 + max_loss) + surprise + 1


def test_a_plain_step_that_was_held_up_counts_thrice() -> None:
    """14 of a second and one of a minute: a step takes 17 / 15 s, of which 4 drafted tokens cost 1.4 s."""
    chosen = settled()
    chosen.observe(0, 0, 60.0)
    chosen.observe(4, 4, 1.4)
    assert chosen.cost == pytest.approx((1.4 / (17 / 15) - 1) / 4)


def test_a_step_that_was_held_up_changes_little() -> None:
    """One plain step of a minute; then one round of a minute."""
    chosen = settled()
    chosen.observe(0, 0, 60.0)
    made, seconds = decode(chosen, 3_000, 0.85, 0.2)
    assert made / seconds > 1.3
    chosen.observe(chosen.length(9) or 4, 4, 60.0)
    made, seconds = decode(chosen, 3_000, 0.85, 0.2)
    assert made / seconds > 1.2


def test_older_parts_of_a_share_count_less() -> None:
    share = Share(memory=0.5)
    assert share.value(7.0) == 7.0
    share.observe(1, 1)
    share.observe(0, 2)
    assert share.value(7.0) == pytest.approx(0.5 / 2.5)
