"""A run whose process is gone does not stay open: crashed in Prefect, killed in MLflow.

Flow runs send heartbeats (every PREFECT_FLOWS_HEARTBEAT_FREQUENCY seconds, 180 by default); one
that has been silent for `patience_s` is taken for dead. This flow asks when it runs; the automation
lets the server do the same by itself for Prefect's half. MLflow's half is `mg3d reconcile`.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_client, runtime
from prefect.automations import Automation
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.filters import EventFilter
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.states import Cancelled, Crashed

from flows import child
from flows.command_line import main
from mg3d import paths

PATIENCE_S = 900.0
HEARTBEAT = "prefect.flow-run.heartbeat"
OPEN = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
ENDS = ("Completed", "Failed", "Crashed", "Cancelled", "Paused", "Suspended")
AUTOMATION = "mg3d: crash flow runs without a heartbeat"


@flow
def reconcile(runs: Path = paths.RUNS, patience_s: float = PATIENCE_S) -> list[UUID]:
    """Mark runs whose process is gone; return the flow runs that were marked.

    Args:
        runs: Where the runs' folders are, for MLflow's half.
        patience_s: How long a flow run may be silent; at least three heartbeats.
    """
    dead = []
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": OPEN}}})
        for run in client.read_flow_runs(flow_run_filter=wanted):
            silent_s = (datetime.now(UTC) - _last_sign(run)).total_seconds()
            if str(run.id) == runtime.flow_run.id or silent_s < patience_s:
                continue
            message = f"no sign of life for {silent_s:.0f} s: its process is gone"
            cancelled = run.state is not None and run.state.is_cancelling()
            state: State[Any] = (Cancelled if cancelled else Crashed)(message=message)
            client.set_flow_run_state(run.id, state, force=True)
            for task_run in client.read_task_runs(
                flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [run.id]}}),
                task_run_filter=TaskRunFilter.model_validate({"state": {"type": {"any_": OPEN}}}),
            ):
                client.set_task_run_state(task_run.id, Crashed(message=message), force=True)
            print(f"flow run {run.name}: {message}")
            dead.append(run.id)
    child.mg3d("reconcile", runs)
    return dead


def _last_sign(run: FlowRun) -> datetime:
    """The newest of a flow run's heartbeats, or when it came into its state."""
    resource = f"prefect.flow-run.{run.id}"
    of_run = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [resource]}}
    with get_client(sync_client=True) as client:
        newest = client.read_events(EventFilter.model_validate(of_run), limit=1).events
    assert run.state is not None
    return max([run.state.timestamp, *(event.occurred for event in newest)])


def watch(patience_s: float = PATIENCE_S) -> None:
    """Let the server crash flow runs that fall silent, whether or not a worker is left to ask."""
    automation = Automation(
        name=AUTOMATION,
        description="Made by flows/reconcile.py.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=patience_s),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {patience_s:.0f} s: its process is gone",
            )
        ],
    )
    with get_client(sync_client=True) as client:
        for known in client.read_automations_by_name(AUTOMATION):
            client.delete_automation(known.id)
    automation.create()


if __name__ == "__main__":
    main(reconcile)
