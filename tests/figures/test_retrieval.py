import numpy as np

from mg3d.figures.retrieval import (
    Query,
    VolumeQuery,
    contact_sheet,
    similarity_histogram,
    volume_contact_sheet,
)


def test_contact_sheet_frames_the_right_volume() -> None:
    plane = np.zeros((8, 8))
    query = Query("A nodule. " * 80, 2, [plane, plane], ["a", "b"], [False, True])
    figure = contact_sheet([query], 2, "title")
    assert "rank 2" in figure.axes[0].texts[0].get_text()
    assert len(figure.axes[0].texts[0].get_text()) < 600
    assert [axes.title.get_color() for axes in figure.axes[1:]] == ["black", "green"]


def test_the_other_sheet_frames_the_right_report() -> None:
    texts = ["A nodule. " * 80, "Emphysema."]
    query = VolumeQuery(np.zeros((8, 8)), 2, texts, ["a", "b"], [False, True])
    figure = volume_contact_sheet([query], 2, "title")
    assert figure.axes[0].title.get_text() == "right report: rank 2"
    assert [axes.title.get_color() for axes in figure.axes[1:]] == ["black", "green"]
    assert len(figure.axes[1].texts[0].get_text()) < 450
    assert figure.axes[2].texts[0].get_text() == "Emphysema."


def test_histogram_of_a_collapsed_encoder() -> None:
    figure = similarity_histogram(np.ones(3), np.ones(6))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["unmatched (n=6)", "matched (n=3)"]
