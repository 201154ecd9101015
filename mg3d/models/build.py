"""The model that an objective asks for."""

from mg3d.models.as_published import MG3DAsPublished
from mg3d.models.mg3d import MG3D
from mg3d.params import Model, Objective


def build(model: Model, objective: Objective) -> MG3D:
    """A new `MG3D`, or what the published code trains instead if ``objective.as_published``.

    Raises ValueError for a text encoder or a width that does not suit.
    """
    return (MG3DAsPublished if objective.as_published else MG3D)(model, objective)
