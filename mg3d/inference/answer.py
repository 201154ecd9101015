"""What a model says about one study."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """A probability, and whether it is called at the threshold that validation chose, if any."""

    name: str
    probability: float
    threshold: float | None = None

    @property
    def called(self) -> bool | None:
        """None without a threshold."""
        return None if self.threshold is None else self.probability >= self.threshold


@dataclass(frozen=True)
class Answer:
    """Findings, a mask, a report or the nearest cases, as the task has it.

    ``mask`` is uint8 class numbers on the study's grid (X, Y, Z), named by ``classes`` from 1 on.
    ``nearest`` are (case id, cosine), the nearest first.
    """

    study_id: str
    findings: tuple[Finding, ...] = ()
    mask: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    volumes_ml: dict[str, float] = field(default_factory=dict)
    report: str | None = None
    nearest: tuple[tuple[str, float], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything but voxels; a part that the task does not have is absent."""
        answer: dict[str, Any] = {"study_id": self.study_id}
        if self.findings:
            answer["findings"] = [
                {
                    "name": finding.name,
                    "probability": round(finding.probability, 6),
                    "threshold": finding.threshold,
                    "called": finding.called,
                }
                for finding in self.findings
            ]
        if self.mask is not None:
            answer["volumes_ml"] = {k: round(v, 3) for k, v in self.volumes_ml.items()}
        if self.report is not None:
            answer["report"] = self.report
        if self.nearest:
            answer["nearest"] = [
                {"case_id": case_id, "similarity": round(value, 6)}
                for case_id, value in self.nearest
            ]
        return answer
