"""CT-RATE: which of 18 findings are present in this chest CT? (spec/downstream 2)

The layout is read by `mg3d.finetuning.ct_rate`. The official "validation" set is the test set, so
validation cases come from training patients. The labels were read from the reports by a classifier:
they are silver, and a model trained on reports is scored against what the reports say.

Modes: ``frozen`` (linear probe), ``finetune``, ``scratch``; ``zero_shot`` and ``prompt_tuned`` ask
the model's own dual encoder "{finding}." and "not {finding}.". The numbers without prefix take one
reconstruction per scan, ``all_volumes_*`` all of them, as the literature does.
"""

from pathlib import Path

from mg3d.finetuning import classification, ct_rate
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger

FINDINGS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema",
    "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion",
    "Mosaic attenuation pattern", "Peribronchial thickening", "Consolidation", "Bronchiectasis",
    "Interlobular septal thickening",
)  # fmt: skip


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per reconstruction that has a row of labels.

    Raises ValueError if the labels are not the 18 of CT-RATE.
    """
    found = ct_rate.cases(data, ledger, needs="labels")
    for case in found:
        if set(case.labels) != set(FINDINGS):
            wrong = sorted(set(case.labels) ^ set(FINDINGS))
            raise ValueError(
                f"the tables of labels differ from CT-RATE's 18 in {wrong}: take its files in "
                "dataset/multi_abnormality_labels"
            )
    return found


TASK = DownstreamTask(
    name="ct_rate_diagnosis",
    version="1",
    kind=classification,
    cases=cases,
    headline=("mean_auroc",),
    citation="Hamamci et al., Developing Generalist Foundation Models from a Multimodal Dataset "
    "for 3D Computed Tomography (CT-RATE), arXiv 2403.17834",
    licence="CC BY-NC-SA 4.0",
)
