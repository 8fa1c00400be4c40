"""The rate over a run: warm-up, decays as shares or epochs, and what a longer run keeps of the past."""

import pytest

from schemas.errors import SettingsError
from schemas.settings import Settings, TrainSettings, load_settings
from trainer.learning.schedule import Schedule, make_schedule, resumed_schedule


def options(**values: object) -> TrainSettings:
    return TrainSettings.model_validate(values)


def test_rate__is_the_papers_on_a_run_of_the_papers_size() -> None:
    schedule = make_schedule(TrainSettings(), epoch_steps=11_000)
    assert schedule.rate(0, 0) == pytest.approx(0.12 / 30)
    assert schedule.rate(500, 0.1) == pytest.approx(0.12 * (1 / 30 + 29 / 30 / 2))
    assert schedule.rate(1000, 0.1) == pytest.approx(0.12)
    assert schedule.rate(100_000, 9.999) == pytest.approx(0.12)
    assert schedule.rate(110_000, 10) == pytest.approx(0.012)


@pytest.mark.parametrize("step", [0, 300, 2000])
def test_rate__follows_the_batch(step: int) -> None:
    one = make_schedule(options(batch_size=32), 10_000).rate(step, 0)
    assert one * 4 == pytest.approx(make_schedule(TrainSettings(), 10_000).rate(step, 0))


def test_make_schedule__cuts_the_warmup_to_a_quarter_of_the_run() -> None:
    schedule = make_schedule(options(epochs=12), epoch_steps=11)
    assert schedule.warmup_steps == 33
    assert schedule.rate(33, 3) == pytest.approx(0.12)
    assert make_schedule(options(epochs=1), epoch_steps=1).rate(0, 0) == pytest.approx(0.12)


def test_make_schedule__shares_decay_a_run_of_any_length() -> None:
    for epochs in (1, 6, 12):
        schedule = make_schedule(options(epochs=epochs), 100)
        assert schedule.rate(99 * epochs, 0.8 * epochs) == pytest.approx(0.12)
        assert schedule.rate(99 * epochs, 0.9 * epochs) == pytest.approx(0.012)
    assert make_schedule(options(epochs=12), 100).decays == (10.0,)
    assert make_schedule(options(epochs=6, decay_epochs=[1, 5]), 100).decays == (1.0, 5.0)


def test_settings__refuse_shares_beside_epochs() -> None:
    with pytest.raises(SettingsError, match="either shares below 1 or epochs"):
        load_settings(None, ("train.decay_epochs=[0.5, 10]",))
    assert load_settings(None, ("train.decay_epochs=[8, 10]",)) != Settings()


def test_resumed_schedule__more_epochs_do_not_change_the_past() -> None:
    before = make_schedule(options(epochs=6, decay_epochs=[0.5, 0.8]), 100)
    after = make_schedule(options(epochs=12, decay_epochs=[0.5, 0.8]), 100)

    def resumed(progress: float, **same: bool) -> Schedule:
        return resumed_schedule(after, before.kept(), progress, **{"same_warmup": True, "same_decays": True, **same})

    assert resumed(2.5).decays == pytest.approx((6.0, 9.6))  # none was passed
    assert resumed(3.0).decays == pytest.approx((6.0, 9.6))  # no step was taken at the lower rate yet
    assert resumed(4.0).decays == pytest.approx((3.0, 9.6))
    assert resumed(6.0).decays == pytest.approx((3.0, 4.8))
    assert resumed(6.0, same_decays=False).decays == pytest.approx((6.0, 9.6))  # a new setting counts as given
    assert resumed(4.0).warmup_steps == before.warmup_steps == 150
    assert resumed(4.0, same_warmup=False).warmup_steps == 300
