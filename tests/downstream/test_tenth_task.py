"""docs/tenth_task.md does what it says: its blocks, put into a copy of the project, are a task."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .layouts import chest_hu, write_nifti

ROOT = Path(__file__).parents[2]


def test_one_file_one_line_one_section(tmp_path: Path, checkpoint: Path) -> None:
    text = (ROOT / "docs/tenth_task.md").read_text()
    file, line, section = re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "mg3d", tmp_path / "mg3d")
    (tmp_path / "mg3d/downstream/mosmed.py").write_text(file)
    code = tmp_path / "mg3d/params.py"
    before = code.read_text()
    head = "class Downstream(Section):"
    assert before.count(head) == 1
    end_of_fields = before.index("\n    def task", before.index(head))
    code.write_text(before[:end_of_fields].rstrip("\n") + "\n" + line + before[end_of_fields:])
    section = section.replace("num_steps: 100", "num_steps: 2")
    params = (ROOT / "params.yaml").read_text()
    params = params.replace("\ndownstream:\n", f"\ndownstream:\n{section}")
    (tmp_path / "params.yaml").write_text(params)
    for number in range(12):
        grade = "odd" if number == 11 else number % 3
        name = f"studies/CT-{grade}/study_{number:04d}.nii.gz"
        image = chest_hu(seed=number, lesion=number % 3 > 0)
        write_nifti(tmp_path / "data/downstream/mosmed" / name, image, (7.0, 7.0, 9.0))
    flags = ("--task", "mosmed", "--out", "runs/mosmed")
    subprocess.run(
        [sys.executable, "-m", "mg3d.cli", "evaluate", checkpoint, *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    result = json.loads((tmp_path / "runs/mosmed/result.json").read_text())
    assert result["task"] == "mosmed"
    assert result["ledger"]["used"] == 11
    assert result["ledger"]["reasons"] == {"invalid_label": 1}
    assert set(result["headline"]["null"]) == {"prevalence", "random_encoder"}
