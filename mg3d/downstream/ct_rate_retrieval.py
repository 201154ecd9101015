"""CT-RATE: which volume belongs to this report, and the reverse. (spec/downstream 2 and 3)

The layout is read by `mg3d.finetuning.ct_rate`; the official "validation" set is the test set.
"""

from pathlib import Path

from mg3d.finetuning import ct_rate, retrieval
from mg3d.finetuning.task import Case, DownstreamTask
from mg3d.ledger import Ledger


def cases(data: Path, ledger: Ledger) -> list[Case]:
    """One case per reconstruction that has a report."""
    return ct_rate.cases(data, ledger, needs="report")


TASK = DownstreamTask(
    name="ct_rate_retrieval",
    version="2",
    kind=retrieval,
    cases=cases,
    headline=("recall_at_5",),
    citation="Hamamci et al., Developing Generalist Foundation Models from a Multimodal Dataset "
    "for 3D Computed Tomography (CT-RATE), arXiv 2403.17834",
    licence="CC BY-NC-SA 4.0",
)
