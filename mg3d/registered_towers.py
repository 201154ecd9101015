"""What the registry stores of both towers, the model `mg3d`: this file, as a model from code.

No pickle: MLflow runs this file, which reads a checkpoint's safetensors. Input: a table with the
columns ``path`` (a study, as in `registered_task`) and ``text``, one of them filled in each row;
``params["ask"]`` says what is asked:

- ``embed``: a row per input, ``answer`` the L2-normalised embedding of the study or of the text;
- ``findings``: a row per study, ``answer`` the zero-shot probability of each row's text, asked as
  "{text}." against "not {text}.";
- ``retrieve``: a row per text, ``answer`` the input's studies, the likeliest first.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from mg3d.inference.study import Study

ASKS = ("embed", "findings", "retrieve")


class RegisteredTowers(PythonModel):
    """The dual encoder of one registered version, with the contract it was trained under."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model from the artifact (called by MLflow, by keyword)."""
        from mg3d.inference.dual import load_dual_encoder

        self.model = load_dual_encoder(Path(context.artifacts["model"]))
        self.contract = self.model.contract

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict | None = None
    ) -> pd.DataFrame:
        """See the module. Raises ValueError for another question."""
        ask = (params or {}).get("ask", "embed")
        if ask not in ASKS:
            raise ValueError(f"ask {ask!r}: one of {', '.join(ASKS)}")
        rows = model_input.to_dict("records")
        studies = [study for row in rows for study in self._studies(row.get("path"))]
        texts = [row["text"] for row in rows if isinstance(row.get("text"), str) and row["text"]]
        answers = getattr(self, f"_{ask}")(studies, texts)
        return pd.DataFrame(
            [(of, json.dumps(answer)) for of, answer in answers], columns=["of", "answer"]
        )

    def _studies(self, path: Any) -> "list[Study]":
        from mg3d.inference.inputs import allowed
        from mg3d.inference.study import read_studies

        return read_studies(allowed(path), self.model.admission) if isinstance(path, str) else []

    def _embed(self, studies: "list[Study]", texts: list[str]) -> list[tuple[str, Any]]:
        images = [(s.study_id, self.model.embed_image(s).tolist()) for s in studies]
        return images + [(text, self.model.embed_text(text).tolist()) for text in texts]

    def _findings(self, studies: "list[Study]", texts: list[str]) -> list[tuple[str, Any]]:
        found = [(s.study_id, self.model.findings(s, texts)) for s in studies]
        return [(study_id, answer.as_json()["findings"]) for study_id, answer in found]

    def _retrieve(self, studies: "list[Study]", texts: list[str]) -> list[tuple[str, Any]]:
        images = np.stack([self.model.embed_image(study) for study in studies])
        answers: list[tuple[str, Any]] = []
        for text in texts:
            similarity = images @ self.model.embed_text(text)
            ranked = [
                {"study_id": studies[row].study_id, "similarity": round(float(similarity[row]), 6)}
                for row in np.argsort(-similarity, kind="stable")
            ]
            answers.append((text, ranked))
        return answers


mlflow.models.set_model(RegisteredTowers())
