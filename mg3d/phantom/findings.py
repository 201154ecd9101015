"""What can be wrong with a chest: the catalogue of findings and how a study gets its own.

A :class:`Finding` is the single source of truth: ``painting`` turns it into voxels, ``reports``
into words, the downstream layouts into labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mg3d.phantom.draws import Draws

SEVERITIES = ("mild", "moderate", "severe")
LOBES = {"right": ("upper lobe", "middle lobe", "lower lobe"), "left": ("upper lobe", "lower lobe")}


@dataclass(frozen=True)
class Finding:
    """One abnormality. Fields that a kind does not use keep their defaults.

    ``side`` is right, left, both or "" (midline or diffuse), always the patient's side;
    ``location`` a lobe, a rib number or a device; ``size_mm`` the two diameters that are reported;
    ``severity`` 0, 1 or 2 (index into :data:`SEVERITIES`).
    """

    kind: str
    side: str = ""
    location: str = ""
    size_mm: tuple[int, int] = (0, 0)
    severity: int = 0

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides it occupies: ("right", "left") for both."""
        return ("right", "left") if self.side == "both" else (self.side,)


@dataclass(frozen=True)
class Kind:
    """How often a kind occurs in a study and which values its fields take."""

    prevalence: float
    sides: tuple[str, ...] = ("",)
    locations: tuple[str, ...] = ("",)
    sizes_mm: tuple[int, int] = (0, 0)
    num_severities: int = 1


ANY_SIDE = ("right", "left", "both")
ONE_SIDE = ("right", "left")
CATALOGUE: dict[str, Kind] = {
    "pleural_effusion": Kind(0.38, ANY_SIDE, num_severities=3),
    "pneumothorax": Kind(0.10, ONE_SIDE, num_severities=2),
    "consolidation": Kind(0.28, ONE_SIDE, ("lobe",), num_severities=3),
    "ground_glass": Kind(0.34, ANY_SIDE, num_severities=3),
    "atelectasis": Kind(0.26, ONE_SIDE, num_severities=2),
    "emphysema": Kind(0.26, num_severities=3),
    "fibrosis": Kind(0.14, num_severities=2),
    "mosaic": Kind(0.10),
    "septal_thickening": Kind(0.12),
    "peribronchial_thickening": Kind(0.12),
    "bronchiectasis": Kind(0.12, ANY_SIDE),
    "nodule": Kind(0.25, ONE_SIDE, ("lobe",), sizes_mm=(10, 26)),
    "mass": Kind(0.14, ONE_SIDE, ("lobe",), sizes_mm=(34, 60)),
    "lymphadenopathy": Kind(0.15, sizes_mm=(14, 30)),
    "cardiomegaly": Kind(0.30, num_severities=3),
    "pericardial_effusion": Kind(0.16, num_severities=3),
    "coronary_calcification": Kind(0.26, num_severities=3),
    "aortic_calcification": Kind(0.26, num_severities=3),
    "hiatal_hernia": Kind(0.15, sizes_mm=(52, 84)),
    "rib_fracture": Kind(0.12, ONE_SIDE, ("4", "5", "6", "7", "8")),
    "device": Kind(0.22, locations=("pacemaker", "port", "sternal wires")),
    "scoliosis": Kind(0.16, ONE_SIDE, num_severities=3),
    "steatosis": Kind(0.22, num_severities=2),
}

# Pairs whose signs would hide each other; the second of a pair is dropped.
EXCLUSIVE: tuple[tuple[str, str], ...] = (
    ("pleural_effusion", "pneumothorax"),
    ("pleural_effusion", "atelectasis"),
    ("consolidation", "atelectasis"),
    ("pneumothorax", "atelectasis"),
    ("ground_glass", "fibrosis"),
    ("ground_glass", "mosaic"),
    ("emphysema", "fibrosis"),
    ("emphysema", "mosaic"),
    ("emphysema", "atelectasis"),
    ("fibrosis", "mosaic"),
    ("fibrosis", "septal_thickening"),
    ("mosaic", "septal_thickening"),
    ("nodule", "mass"),
)


def draw_finding(kind: str, draws: Draws) -> Finding:
    """A finding of ``kind`` with random side, place, size and severity."""
    rule = CATALOGUE[kind]
    side = draws.choice(rule.sides)
    location = draws.choice(rule.locations)
    if location == "lobe":
        location = draws.choice(LOBES[side])
    low, high = rule.sizes_mm
    long = draws.integer(low, high)
    short = max(long - draws.integer(0, max(long // 3, 1)), low - low // 4)
    severity = draws.integer(0, rule.num_severities - 1)
    return Finding(kind, side, location, (long, short) if high else (0, 0), severity)


def draw_findings(draws: Draws) -> tuple[Finding, ...]:
    """The findings of one study in catalogue order; one study in eighteen has none."""
    if draws.chance(1.0 / 18.0):
        return ()
    kinds = [kind for kind, rule in CATALOGUE.items() if draws.chance(rule.prevalence)]
    for first, second in EXCLUSIVE:
        if first in kinds and second in kinds:
            kinds.remove(draws.choice((first, second)))
    return tuple(draw_finding(kind, draws.child(kind)) for kind in kinds)


def kinds_of(findings: Sequence[Finding]) -> frozenset[str]:
    """The kinds present."""
    return frozenset(finding.kind for finding in findings)
