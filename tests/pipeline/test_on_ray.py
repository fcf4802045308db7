"""What a run on Ray says when the cluster, not its work, is why it failed."""

from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError

from longattn.pipeline.on_ray import _failure


class Lost:
    """A monitor whose actor is gone."""

    def __init__(self, error):
        self.error = error

    def progress(self):
        raise self.error


def died(**facts):
    """Ray's own error of an actor that is gone."""
    return ActorDiedError(ActorDiedErrorContext(actor_id=b"\1" * 16, class_name="_Hosted", **facts))


def test_a_driver_and_a_ray_of_other_authentication_are_told_in_one_line():
    said = _failure(Lost(died(never_started=True)), RuntimeError("of the data plane"))
    assert "been started with another RAY_AUTH_MODE than is set here" in said
    assert "\n" not in said


def test_a_lost_monitor_is_told_in_one_line():
    said = _failure(Lost(died(error_message="its node died\nand more")), RuntimeError("other"))
    assert said.startswith("an actor on the driver's node was lost; run again to go on")
    assert "its node died" in said and "\n" not in said
