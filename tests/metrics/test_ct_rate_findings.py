import numpy as np
import pytest

from mg3d.downstream.ct_rate_diagnosis import FINDINGS
from mg3d.metrics.ct_rate_findings import LABELS, ct_rate_matrix, panel_crg
from mg3d.phantom.case import draw_case
from mg3d.phantom.draws import Draws
from mg3d.phantom.findings import kinds_of
from mg3d.phantom.reports import prose
from mg3d.phantom.wording import CT_RATE_LABELS


def labels(text: str) -> set[str]:
    (row,) = ct_rate_matrix([text])
    return {name for name, asserted in zip(LABELS, row, strict=True) if asserted}


def test_labels_are_the_official_ones() -> None:
    assert LABELS == FINDINGS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Median sternotomy wires.", {"Medical material"}),
        ("A lobulated mass.", {"Lung nodule"}),
        ("Airspace consolidation.", {"Consolidation", "Lung opacity"}),
        ("Ground-glass opacities; no consolidation.", {"Lung opacity"}),
        ("Possible bronchiectasis.", {"Bronchiectasis"}),
        ("Fracture of a rib. Pneumothorax.", set()),  # not among the 18
        ("No pleural or pericardial effusion.", set()),
    ],
)
def test_by_hand(text: str, expected: set[str]) -> None:
    assert labels(text) == expected


def test_labels_are_those_that_were_planted() -> None:
    """The phantom's findings, read back from its CT-RATE reports (findings and impression)."""
    texts, planted = [], []
    for index in range(200):
        patient = Draws(0, "ct_rate", index)
        case = draw_case(patient, patient.child("study"), index)
        report = case.report(40)
        texts.append(f"{prose(report.findings)}\n{prose(report.impression)}")
        kinds = kinds_of(case.findings)
        planted.append([int(not kinds.isdisjoint(of)) for of in CT_RATE_LABELS.values()])
    assert tuple(CT_RATE_LABELS) == LABELS
    known = np.array(planted)
    assert (known.sum(0) >= 10).all()
    assert np.array_equal(ct_rate_matrix(texts), known)


def test_crg_of_a_panel_by_hand() -> None:
    """Six cells, two positive: a hit earns (6 - 2) / 4 = 1, a miss costs 1, a false alarm 1."""
    reference = np.array([[1, 0, 0], [1, 0, 0]])
    # One hit, one miss, one false alarm: s = 1 - 1 - 1 = -1, m = 2, m / (2m - s) = 2 / 5.
    assert panel_crg(np.array([[1, 1, 0], [0, 0, 0]]), reference) == pytest.approx(0.4)
    assert panel_crg(reference, reference) == 1
    assert panel_crg(np.zeros((2, 3), int), reference) == pytest.approx(1 / 3)
    assert np.isnan(panel_crg(reference, np.zeros((2, 3), int)))
