"""What the registry stores of a downstream task: this file, as a model from code.

No pickle: MLflow runs this file, which reads safetensors and JSON. Input: a table with the column
``path``, a NIfTI file or a folder of DICOM files that the server can read, and for tasks that judge
places ``candidates``, a CSV. Output: a row per study with ``study_id`` (a pseudonym) and ``answer``
(JSON); a path that is refused has ``answer`` {"refused": reason, "detail": ...}. Where
``MG3D_INPUTS`` names a folder, paths outside it are refused unread: set it when serving.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from mg3d.inference.answer import Answer
    from mg3d.inference.study import Study


class RegisteredTask(PythonModel):
    """A downstream task's model of one registered version, with the contract it needs."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model from the artifact (called by MLflow, by keyword)."""
        from mg3d.inference.model import load_task_model

        self.model = load_task_model(Path(context.artifacts["model"]))
        self.contract = self.model.contract

    def studies(self, path: Path, candidates: Path | None = None) -> "list[Study]":
        """What lies at ``path``, admitted. Raises Refused."""
        from mg3d.inference.study import read_places, read_studies

        found = read_studies(path, self.model.admission)
        return read_places(found, candidates) if candidates is not None else found

    def answer(self, study: "Study") -> "Answer":
        """What the model says about one study."""
        return self.model.answer(study)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """Answers for the paths of a table."""
        rows: list[tuple[str, str]] = []
        for row in model_input.to_dict("records"):
            rows += self._answers(row)
        return pd.DataFrame(rows, columns=["study_id", "answer"])

    def _answers(self, row: dict[str, Any]) -> list[tuple[str, str]]:
        from mg3d.data.ct.refused import Refused
        from mg3d.inference.inputs import allowed

        listed = row.get("candidates")
        candidates = allowed(listed) if isinstance(listed, str) and listed else None
        try:
            studies = self.studies(allowed(row["path"]), candidates)
        except Refused as refused:
            about = {"refused": str(refused.reason), "detail": refused.detail}
            return [("", json.dumps(about))]
        return [(s.study_id, json.dumps(self.answer(s).as_json())) for s in studies]


mlflow.models.set_model(RegisteredTask())
