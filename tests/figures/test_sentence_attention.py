import numpy as np

from mg3d.figures.sentence_attention import Attended, attention_sheet, middle_planes_of


def attended(weights: np.ndarray) -> Attended:
    planes = [np.zeros((64, 96), np.uint8), np.zeros((32, 96), np.uint8), np.zeros((32, 64))]
    return Attended("A nodule in the left lung.", weights, planes, (1, 1, 1))


def test_weights_lie_where_their_tokens_are() -> None:
    # (z, y, x) grow to the head, the front and the patient's right; pictures begin there.
    weights = np.zeros((1, 2, 3))
    weights[0, 1, 0] = 1  # front, left
    axial, coronal, sagittal = middle_planes_of(attended(weights))
    assert axial.shape == (64, 96)
    assert axial[0, -1] == 1
    assert axial[0, 0] == axial[-1, -1] == axial[-1, 0] == 0
    assert coronal.shape == (32, 96)
    assert sagittal.shape == (32, 64)
    head = np.zeros((2, 2, 2))
    head[1] = 1
    for plane in middle_planes_of(attended(head))[1:]:
        assert plane[0].min() == 1
        assert plane[-1].max() == 0


def test_a_row_per_sentence_tells_its_range() -> None:
    one = attended(np.linspace(0.25, 0.5, 6).reshape(1, 2, 3))
    flat = attended(np.full((1, 2, 3), 0.5))
    figure = attention_sheet([one, flat])
    titles = [part.get_suptitle() for part in figure.subfigs]
    assert titles[0] == "A nodule in the left lung.\nweight of a token 0.250 to 0.500"
    assert titles[1].endswith("0.500 to 0.500")
    assert sum(len(part.axes) for part in figure.subfigs) == 6
