import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mg3d.finetuning.diagnosis import PENALTIES, fit_diagnosis

GENERATOR = np.random.default_rng(0)


def signal(num_cases: int, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Eight features, of which the first two say what the two labels are."""
    labels = GENERATOR.integers(0, 2, (num_cases, 2))
    features = GENERATOR.normal(0, noise, (num_cases, 8))
    features[:, :2] += labels
    return features, labels


def test_what_the_image_shows_is_found() -> None:
    train, validation, test = signal(40), signal(10), signal(50)
    diagnosis = fit_diagnosis(*train, *validation)
    assert (diagnosis.findings(test[0]) == test[1]).mean() > 0.9


def test_weights_are_those_of_scikit_learn() -> None:
    (x, y), validation = signal(30), signal(5)
    diagnosis = fit_diagnosis(x, y, *validation)
    theirs = Ridge(alpha=diagnosis.penalty).fit((x - x.mean(0)) / x.std(0), y)
    standard = (validation[0] - x.mean(0)) / x.std(0)
    assert diagnosis.probability(validation[0]) == pytest.approx(theirs.predict(standard))


def test_the_penalty_is_the_best_of_those_left_out_one_by_one() -> None:
    """Held out literally: fit without a case, predict it (features standardised once)."""
    x, y = signal(12, noise=1.0)
    nothing = np.zeros((0, 8)), np.zeros((0, 2), int)
    standard = (x - x.mean(0)) / x.std(0)
    errors = []
    for penalty in PENALTIES:
        held_out = [
            Ridge(alpha=penalty)
            .fit(np.delete(standard, case, 0), np.delete(y, case, 0))
            .predict(standard[case : case + 1])[0]
            for case in range(len(x))
        ]
        errors.append(((np.array(held_out) - y) ** 2).mean())
    assert fit_diagnosis(x, y, *nothing).penalty == PENALTIES[int(np.argmin(errors))]


def test_without_an_image_the_frequent_findings_are_diagnosed_for_everyone() -> None:
    labels = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] * 2)
    same = np.ones((8, 4))
    diagnosis = fit_diagnosis(same, labels, same[:2], labels[:2])
    assert diagnosis.findings(np.full((3, 4), 9.0)).tolist() == [[1, 0, 0]] * 3


def test_one_case_is_not_enough() -> None:
    with pytest.raises(ValueError, match="two or more"):
        fit_diagnosis(np.ones((1, 2)), np.ones((1, 1), int), np.ones((0, 2)), np.ones((0, 1), int))
