import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from mg3d.metrics.findings import (
    FINDINGS,
    Status,
    example_f1,
    finding_matrix,
    findings,
    macro_f1,
    micro_f1,
    micro_precision,
    micro_recall,
    statuses,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A 5 mm nodule in the right upper lobe.", {"nodule"}),
        ("No pleural effusion. There is consolidation.", {"consolidation"}),
        ("No effusion, nodule or pneumothorax.", set()),
        ("Pleural effusion is not seen. Emphysema.", {"emphysema"}),
        ("No nodule but a pleural effusion of 1.5 cm.", {"pleural_effusion"}),
        ("Pericardial effusion.", {"pericardial_effusion"}),
        ("Lungs are free of consolidation; ground-glass opacities on the left.", {"opacity"}),
        ("Calcifications of the aortic arch.", {"arterial_calcification"}),
        ("Coronary artery calcification.", {"coronary_calcification"}),
        ("The heart is enlarged.", {"cardiomegaly"}),
        ("The heart is not enlarged.", set()),
        ("Enlarged mediastinal lymph nodes.", {"lymphadenopathy"}),
        ("Mild calcified plaques in the coronary arteries.", {"coronary_calcification"}),
        ("Severe enlargement of the cardiac silhouette.", {"cardiomegaly"}),
        ("No change of the pleural effusion.", {"pleural_effusion"}),
        ("Without significant interval growth of the nodule.", {"nodule"}),
        ("The nodule is not calcified.", {"nodule"}),
        ("Adrenal nodule. Subcutaneous emphysema.", set()),
        ("No effusion, there is a mass.", {"mass"}),
        ("", set()),
    ],
)
def test_by_hand(text: str, expected: set[str]) -> None:
    assert findings(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Consolidation.", Status.PRESENT),
        ("Consolidation, likely pneumonia.", Status.PRESENT),  # the doubt is about its cause
        ("Possible consolidation.", Status.UNCERTAIN),
        ("Opacity at the base may represent consolidation.", Status.UNCERTAIN),
        ("Consolidation cannot be excluded.", Status.UNCERTAIN),
        ("Consolidation is not excluded.", Status.UNCERTAIN),
        ("Suspicious for consolidation.", Status.UNCERTAIN),
        ("No suspicious consolidation.", Status.ABSENT),
        ("Consolidation has resolved.", Status.ABSENT),
        ("No consolidation. Possible consolidation on the left.", Status.UNCERTAIN),
        ("Possible consolidation; consolidation on the left.", Status.PRESENT),
    ],
)
def test_doubt_is_no_denial(text: str, expected: Status) -> None:
    assert statuses(text)["consolidation"] == expected
    assert ("consolidation" in findings(text)) == (expected != Status.ABSENT)


def test_f1_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    predicted, reference = (generator.integers(0, 2, (12, 5)) for _ in range(2))
    assert micro_f1(predicted, reference) == pytest.approx(
        f1_score(reference, predicted, average="micro")
    )
    assert macro_f1(predicted, reference) == pytest.approx(
        f1_score(reference, predicted, average="macro")
    )

    for ours, theirs in ((micro_precision, precision_score), (micro_recall, recall_score)):
        assert ours(predicted, reference) == pytest.approx(
            theirs(reference, predicted, average="micro")
        )
    assert example_f1(predicted, reference).mean() == pytest.approx(
        f1_score(reference, predicted, average="samples")
    )


def test_nothing_found_is_undefined_not_zero() -> None:
    none, one = np.zeros((1, 2), int), np.array([[1, 0]])
    assert np.isnan(micro_precision(none, one))
    assert micro_recall(none, one) == 0
    assert np.isnan(example_f1(none, none)).all()
    assert example_f1(none, one).tolist() == [0]


def test_macro_leaves_out_findings_that_never_occur() -> None:
    predicted, reference = np.array([[1, 0], [1, 0]]), np.array([[1, 0], [1, 0]])
    assert macro_f1(predicted, reference) == 1
    assert np.isnan(macro_f1(predicted, np.zeros((2, 2), int)))


def test_matrix_has_a_column_per_finding() -> None:
    matrix = finding_matrix(["A nodule.", "No nodule."])
    assert matrix.shape == (2, len(FINDINGS))
    assert matrix[:, FINDINGS.index("nodule")].tolist() == [1, 0]
    assert np.isnan(micro_f1(matrix[1:], matrix[1:]))
