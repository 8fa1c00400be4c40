"""Settings of the network that do not go together."""

import pytest
from pydantic import ValidationError

from schemas.settings import ModelSettings


def test_model_settings__no_more_proposals_than_go_into_nms() -> None:
    with pytest.raises(ValidationError, match="proposals 300 is more than pre_nms 200, of which"):
        ModelSettings(pre_nms=200)
    assert ModelSettings(pre_nms=300).proposals == 300
