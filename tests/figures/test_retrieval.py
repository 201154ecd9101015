import numpy as np

from mg3d.figures.retrieval import Query, contact_sheet, similarity_histogram


def test_contact_sheet_frames_the_right_volume() -> None:
    plane = np.zeros((8, 8))
    query = Query("A nodule. " * 80, 2, [plane, plane], ["a", "b"], [False, True])
    figure = contact_sheet([query], 2, "title")
    assert "rank 2" in figure.axes[0].texts[0].get_text()
    assert len(figure.axes[0].texts[0].get_text()) < 600
    assert [axes.title.get_color() for axes in figure.axes[1:]] == ["black", "green"]


def test_histogram_of_a_collapsed_encoder() -> None:
    figure = similarity_histogram(np.ones(3), np.ones(6))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["unmatched (n=6)", "matched (n=3)"]
