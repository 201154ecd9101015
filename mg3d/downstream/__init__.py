"""The downstream tasks by name; a file here is a task, a section in params, and a test."""

from mg3d.downstream import (
    acdc,
    cc_ccii,
    covid19_20,
    ct_rate_diagnosis,
    ct_rate_retrieval,
    ctrg_report,
    luna16,
    msd_lung,
    stoic2021,
)
from mg3d.finetuning.task import DownstreamTask

DOWNSTREAM: dict[str, DownstreamTask] = {
    module.TASK.name: module.TASK
    for module in (
        stoic2021,
        cc_ccii,
        luna16,
        ct_rate_diagnosis,
        covid19_20,
        msd_lung,
        acdc,
        ct_rate_retrieval,
        ctrg_report,
    )
}
