"""A server that comes and goes: everything arrives, in order, and nothing twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from mg3d.spool import Absent, Entry, Spool


class Server:
    def __init__(self) -> None:
        self.there = True
        self.got: list[Entry] = []
        self.calls = 0

    def send(self, entries: Sequence[Entry]) -> None:
        self.calls += 1
        if not self.there:
            raise Absent("no answer")
        self.got += entries


def entry(step: int) -> Entry:
    return Entry("loss", step / 8, 1000 + step, step)


def test_what_an_absent_server_missed_is_sent_first_when_it_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server()
    spool = Spool(tmp_path / "unsent.jsonl", server.send, retry_every_s=0)
    spool.add([entry(0)])
    server.there = False
    spool.add([entry(1)])
    spool.add([entry(2), entry(3)])
    assert "the run goes on" in capsys.readouterr().err
    server.there = True
    spool.add([entry(4)])
    assert server.got == [entry(step) for step in range(5)]
    assert not spool.file.exists()
    assert "4 metrics" in capsys.readouterr().err


def test_an_absent_server_is_asked_again_only_after_a_while(tmp_path: Path) -> None:
    server = Server()
    server.there = False
    spool = Spool(tmp_path / "unsent.jsonl", server.send, retry_every_s=3600)
    for step in range(5):
        spool.add([entry(step)])
    assert server.calls == 1  # training does not wait at every step
    server.there = True
    assert spool.flush()
    assert server.got == [entry(step) for step in range(5)]


def test_another_process_sends_what_waits_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    server = Server()
    server.there = False
    Spool(tmp_path / "unsent.jsonl", server.send).add([entry(0), entry(1)])
    with (tmp_path / "unsent.jsonl").open("a") as file:
        file.write('["loss", 0.5, 10')  # killed while writing
    server.there = True
    assert Spool(tmp_path / "unsent.jsonl", server.send).flush()
    assert server.got == [entry(0), entry(1)]


def test_what_the_server_refuses_is_an_error(tmp_path: Path) -> None:
    def refuse(entries: Sequence[Entry]) -> None:
        raise ValueError("no such run")

    with pytest.raises(ValueError, match="no such run"):
        Spool(tmp_path / "unsent.jsonl", refuse).add([entry(0)])
