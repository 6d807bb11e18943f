"""What one site does of what the sites do together."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from excise.common.settings import FEWEST_RETAINED, PRESETS, LocalSettings, PrivacySettings, UnlearningSettings


@given(batch=st.integers(1, 300), keeping=st.integers(1, 2000))
def test_sites_share_the_retain_batch(batch: int, keeping: int) -> None:
    settings = UnlearningSettings(local=LocalSettings(retain_batch=batch))
    part = settings.at_site(0.5, keeping, 0.5).local.retain_batch
    assert part * keeping >= batch
    assert part == max(math.ceil(batch / keeping), min(batch, FEWEST_RETAINED))


def test_a_round_that_is_shared_by_many_sites_draws_on_as_many_images_as_the_default_policy_asks_for() -> None:
    local = PRESETS["samples"].at_site(0.0, 100_000, 0.5).local
    assert local.retain_batch * local.steps >= PrivacySettings().min_count


def test_no_retain_image_is_asked_for_where_all_sites_together_take_none() -> None:
    assert PRESETS["published"].at_site(1.0, 4, 0.25).local.retain_batch == 0


def test_a_site_takes_its_part_of_the_forget_batch() -> None:
    shared = PRESETS["samples"].at_site(0.25, 4, 1.0)
    assert (shared.local.forget_batch, shared.target.looks) == (12, 16)
    assert PRESETS["samples"].at_site(0.0, 4, 0.25).local.forget_batch == 1
    assert PRESETS["published"].at_site(0.25, 4, 1.0).local.forget_batch == 32  # with epochs each goes through its own


def test_few_sites_among_others_step_away_less_far() -> None:
    settings = UnlearningSettings(negation=4)
    assert [settings.at_site(1.0, 8, share).negation for share in (1.0, 0.25, 0.125, 0.0625)] == [4, 4, 2, 1]
