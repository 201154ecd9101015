"""ablate and scale are one child each; being told to stop is no failure, a wrong file no try."""

from pathlib import Path
from typing import Any

import pytest

from flows import ablate, child, scale
from mg3d import launch

FLOWS = {"ablate": ablate, "scale": scale}


@pytest.fixture(params=FLOWS)
def verb(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    module = FLOWS[request.param]
    monkeypatch.setattr(module, "run_cells", module.run_cells.with_options(retry_delay_seconds=0))
    return request.param


def flow(verb: str) -> Any:
    return getattr(FLOWS[verb], verb)


def test_one_child_whose_last_line_is_the_result(children: Any, verb: str) -> None:
    assert flow(verb)() == Path(f"result of {verb}")
    assert children.started() == [[verb, "prepared", "--out", "runs", "--params", "params.yaml"]]


def test_it_goes_on_after_being_told_to_stop(
    children: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys; from pathlib import Path; told = Path('told').read_text().split() "
        "if Path('told').exists() else []; Path('told').write_text(' '.join([*told, 'x'])); "
        f"print('result'); sys.exit({launch.RESUMABLE} if len(told) < 3 else 0)"
    )
    monkeypatch.setattr(child, "MG3D", (*child.MG3D[:1], "-c", script))
    assert flow(verb)() == Path("result")


def test_a_wrong_file_fails_before_a_child_starts(children: Any, verb: str) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace(f"\n{verb}:", f"\n{verb}s:"))
    with pytest.raises(ValueError, match=f"{verb}s: unknown key; did you mean {verb}"):
        flow(verb)()
    assert children.started() == []
