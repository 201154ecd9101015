"""CT-RATE's 18 findings in free text: what the labeller of `findings` reads, under their names.

CT-RATE's own labels were read from its reports by a trained classifier; this is a rule-based
stand-in (see `findings`). As there, a mass is a lung nodule and a consolidation a lung opacity too.
"""

from collections.abc import Sequence

import numpy as np

from mg3d.metrics.classification import crg
from mg3d.metrics.findings import findings

_NAMED_BY: dict[str, tuple[str, ...]] = {
    "Medical material": ("medical_material",),
    "Arterial wall calcification": ("arterial_calcification",),
    "Cardiomegaly": ("cardiomegaly",),
    "Pericardial effusion": ("pericardial_effusion",),
    "Coronary artery wall calcification": ("coronary_calcification",),
    "Hiatal hernia": ("hiatal_hernia",),
    "Lymphadenopathy": ("lymphadenopathy",),
    "Emphysema": ("emphysema",),
    "Atelectasis": ("atelectasis",),
    "Lung nodule": ("nodule", "mass"),
    "Lung opacity": ("opacity", "consolidation"),
    "Pulmonary fibrotic sequela": ("fibrosis",),
    "Pleural effusion": ("pleural_effusion",),
    "Mosaic attenuation pattern": ("mosaic_attenuation",),
    "Peribronchial thickening": ("peribronchial_thickening",),
    "Consolidation": ("consolidation",),
    "Bronchiectasis": ("bronchiectasis",),
    "Interlobular septal thickening": ("septal_thickening",),
}
LABELS = tuple(_NAMED_BY)


def ct_rate_matrix(texts: Sequence[str]) -> np.ndarray:
    """Labels that each text asserts, doubtful ones included: int [N, 18] in {0, 1}."""
    asserted = [findings(text) for text in texts]
    return np.array(
        [[int(not row.isdisjoint(names)) for names in _NAMED_BY.values()] for row in asserted],
        dtype=int,
    ).reshape(-1, len(LABELS))


def panel_crg(predicted: np.ndarray, reference: np.ndarray) -> float:
    """CRG over all cells [N, 18] (`classification.crg`); NaN unless the reference has both."""
    return crg(reference.ravel(), predicted.ravel())
