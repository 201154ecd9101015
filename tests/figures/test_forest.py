from mg3d.figures.forest import Line, forest


def test_values_intervals_and_nulls_are_where_they_belong() -> None:
    lines = [Line("a", 0.8, (0.7, 0.9), {"chance": 0.5, "none": None}), Line("b", None, None, {})]
    axes = forest(lines).axes[0]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert drawn == [([0.5], [0]), ([0.7, 0.9], [0, 0]), ([0.8], [0]), ([], [])]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert axes.texts[0].get_text() == "not available"
    assert axes.get_ylim() == (1.5, -0.5)  # first on top
