"""The downstream tasks by name; a file here is a task, a section in params, and a test."""

from importlib import import_module

from mg3d.finetuning.task import DownstreamTask
from mg3d.params import Downstream

DOWNSTREAM: dict[str, DownstreamTask] = {
    name: import_module(f"mg3d.downstream.{name}").TASK for name in Downstream.model_fields
}
