"""What a run on Ray says when the cluster, not its work, is why it failed."""

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError

from longattn.pipeline.on_ray import _failure


class Lost:
    """A monitor whose actor is gone."""

    def __init__(self, error):
        self.error = error

    def progress(self):
        raise self.error


@pytest.fixture
def never_started():
    """What Ray says of an actor that never ran, as where the driver's token is not asked for."""
    return ActorDiedError(ActorDiedErrorContext(
        error_message="", owner_id=b"", owner_ip_address="", node_ip_address="", name="", pid=0,
        ray_namespace="", class_name="_Hosted", actor_id=b"", never_started=True,
    ))  # fmt: skip


def test_a_driver_and_a_ray_of_other_authentication_are_told_in_one_line(never_started):
    said = _failure(Lost(never_started), RuntimeError("of the data plane"))
    assert "RAY_AUTH_MODE must be the same here and where Ray was started" in said
    assert "\n" not in said


def test_a_lost_monitor_is_told_in_one_line():
    said = _failure(Lost(ActorDiedError("its node died\nand more")), RuntimeError("other"))
    assert said.startswith("an actor on the driver's node was lost; run again to go on")
    assert "its node died" in said and "\n" not in said
