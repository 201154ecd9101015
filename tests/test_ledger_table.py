"""`mg3d ledger`: the table, worked by hand; its words name reasons that exist."""

from pathlib import Path

import yaml

from mg3d.ledger import Ledger, Reason
from mg3d.ledger_table import MEANINGS, ORDER, render


def test_the_table_by_hand() -> None:
    reports = Ledger("clean_reports", "report", ["a", "b", "c", "d"])
    reports.use("a")
    reports.quarantine("b", Reason.EMPTY_REPORT)
    reports.quarantine("c", Reason.NO_KEY)
    reports.quarantine("d", Reason.NO_KEY)
    reports.count("distinct_texts", 1)
    other = Ledger("a_stage_of_mine", "thing")
    volumes = Ledger("convert_volumes", "series", map(str, range(1200)))
    for number in range(1200):
        volumes.use(str(number))
    summaries = [ledger.summary() for ledger in (other, reports, volumes)]
    head, rule, *lines = render(summaries).split("\n")
    assert head.split() == ["stage", "unit", "in", "used", "left", "out", "%", "of", "in"]
    assert set(rule) == {"-"}
    assert [" ".join(line.split()) for line in lines] == [
        "convert_volumes series 1,200 1,200 0 100.0",
        "clean_reports report 4 1 3 25.0",
        "no_key 2 50.0 no accession number",
        "empty_report 1 25.0 no text, or under clean_reports.min_characters",
        "distinct texts 1",
        "a_stage_of_mine thing 0 0 0 -",
    ]
    assert head.index("in") + 2 == lines[0].index("1,200") + 5  # numbers are right-aligned


def test_its_words_are_of_reasons_and_stages_that_exist() -> None:
    assert set(MEANINGS) == {str(reason) for reason in Reason}
    stages = yaml.safe_load((Path(__file__).parents[1] / "dvc.yaml").read_text())["stages"]
    assert set(ORDER) == set(stages) - {"inspect"}  # which only looks
