import numpy as np

from mg3d.figures.report_generation import Generated, report_sheet


def test_sheet_tells_agreed_missed_and_invented() -> None:
    case = Generated(
        slices=[np.zeros((8, 8))] * 3,
        reference="A nodule and an effusion.",
        hypothesis="A nodule and a fracture.",
        reference_findings=frozenset({"nodule", "effusion"}),
        hypothesis_findings=frozenset({"nodule", "fracture"}),
    )
    figure = report_sheet([case])
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts.count("both: nodule") == 2
    assert "reference only: effusion" in texts
    assert "generated only: fracture" in texts
    assert sum(len(axes.images) for axes in figure.axes) == 3
