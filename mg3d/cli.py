"""One command per verb: parse, call, print.

A verb is a function, a params section and, for data, a DVC stage.

Imports happen inside the commands so that ``mg3d --help`` is instant. Mistakes of the user end with
one line on stderr and exit code 2; a traceback is a bug of ours.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mg3d import launch, paths
from mg3d.params import Cell, DicomExport, load_params, save_params

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Source = Annotated[Path, typer.Argument(help="The verb's one input.")]
SourceName = Annotated[str, typer.Argument(help="One of `sources` in the params.")]
OutOfSource = Annotated[
    Path | None, typer.Option("--out", help="Where the result goes, not prepared/.")
]
Out = Annotated[Path, typer.Option("--out", help="Where the result goes.")]
ParamsFile = Annotated[Path, typer.Option("--params", help="A complete params file.")]

DEFAULT_MODEL = "models:/mg3d-encoder@candidate"


@app.command("write_cohort")
def write_cohort(out: Out = paths.DATA, params: ParamsFile = paths.PARAMS) -> None:
    """Lay out the embedded cohort: DICOM export, reports and downstream data sets."""
    from mg3d.phantom.cohort import write_cohort as run

    run(out, load_params(params).write_cohort)


@app.command("convert_volumes")
def convert_volumes(
    source: SourceName, out: OutOfSource = None, params: ParamsFile = paths.PARAMS
) -> None:
    """The volumes of a source -> NIfTI in HU, RAS, true spacing."""
    from mg3d.data.conversion import convert_volumes as run

    tree = load_params(params)
    out = out or paths.stage_folder("convert_volumes") / source
    _print_summary(run(tree.sources.named(source).volumes, out, tree.convert_volumes).summary())


@app.command("clean_reports")
def clean_reports(
    source: SourceName, out: OutOfSource = None, params: ParamsFile = paths.PARAMS
) -> None:
    """The reports of a source -> de-identified findings and impression."""
    from mg3d.data.reports import clean_reports as run

    tree = load_params(params)
    out = out or paths.stage_folder("clean_reports") / source
    _print_summary(run(tree.sources.named(source).reports, out, tree.clean_reports).summary())


@app.command("segment_sentences")
def segment_sentences(
    source: Source = paths.stage_folder("clean_reports"),
    out: Out = paths.stage_folder("segment_sentences"),
    params: ParamsFile = paths.PARAMS,
) -> None:
    """Reports -> ordered sentences with stable ids."""
    from mg3d.data.sentences import segment_sentences as run

    tree = load_params(params)
    _print_summary(run(source, out, tree.segment_sentences, tree.sources).summary())


@app.command("embed_sentences")
def embed_sentences(
    source: Source = paths.PREPARED,
    out: Out = paths.stage_folder("embed_sentences"),
    params: ParamsFile = paths.PARAMS,
) -> None:
    """Sentences -> their means under the frozen text encoder."""
    from mg3d.data.embeddings import embed_sentences as run

    tree = load_params(params)
    _print_summary(run(source, out, tree.embed_sentences, tree.model.text).summary())


@app.command("pack_volumes")
def pack_volumes(
    source: SourceName, out: OutOfSource = None, params: ParamsFile = paths.PARAMS
) -> None:
    """NIfTI -> the volume contract, packed for fast reading."""
    from mg3d.data.volumes import pack_volumes as run

    tree = load_params(params)
    tree.sources.named(source)
    converted = paths.stage_folder("convert_volumes") / source
    out = out or paths.stage_folder("pack_volumes") / source
    _print_summary(run(converted, out, tree.pack_volumes, tree.contract).summary())


@app.command("build_manifest")
def build_manifest(
    source: Source = paths.PREPARED,
    out: Out = paths.stage_folder("build_manifest"),
    params: ParamsFile = paths.PARAMS,
) -> None:
    """Join volumes and reports, one row per study; split by patient."""
    from mg3d.data.manifest import build_manifest as run

    tree = load_params(params)
    _print_summary(run(source, out, tree.build_manifest, tree.sources).summary())


@app.command("pretrain")
def pretrain(
    source: Source = paths.PREPARED,
    out: Out = paths.RUNS,
    params: ParamsFile = paths.PARAMS,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Go on in this run's folder, not in one of OUT.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although code, params or data have changed.")
    ] = False,
    nnodes: Annotated[int, typer.Option("--nnodes", help="Machines that train together.")] = 1,
    node_rank: Annotated[
        int, typer.Option("--node-rank", help="Which of them this is; 0 writes the record.")
    ] = 0,
    rdzv_endpoint: Annotated[
        str, typer.Option("--rdzv-endpoint", help="HOST:PORT of node 0, where they meet.")
    ] = "",
) -> None:
    """Pre-train on pretrain.num_ranks ranks; resumes; prints the checkpoint folder last."""
    tree = load_params(params)
    if resume is not None and not (resume / paths.CHECKPOINTS).is_dir():
        raise ValueError(f"--resume {resume} has no {paths.CHECKPOINTS}/: name a run's folder")
    if force and resume is None:
        raise ValueError("--force goes with --resume RUN: name the run's folder")
    from mg3d import tracking

    if not launch.is_rank():
        from mg3d.experiments.run import pretrain_on_ranks

        nodes = launch.Nodes(nnodes, node_rank, rdzv_endpoint)
        print(pretrain_on_ranks(source, out, tree, resume=resume, force=force, nodes=nodes))
        return
    from mg3d.fingerprint import pretrain_fingerprint
    from mg3d.training.loop import Stopped
    from mg3d.training.pretrain import pretrain as run

    sections = (tree.contract, tree.model, tree.objective, tree.pretrain)
    folder = resume or out / f"pretrain-{pretrain_fingerprint(source, *sections).digest}"
    on_metrics = tracking.attach(folder).on_metrics if launch.is_rank_zero() else _ignore
    try:
        run(source, folder, *sections, on_metrics=on_metrics, force=force)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(launch.RESUMABLE)


@app.command("import_weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="Published weights: .safetensors, .pt, .pth, ...")],
    out: Annotated[Path, typer.Option("--out", help="A run's folder, e.g. runs/imported.")],
    params: ParamsFile = paths.PARAMS,
) -> None:
    """Published weights -> a checkpoint under the params' contract; prints its folder last."""
    tree = load_params(params)
    from mg3d import tracking
    from mg3d.training.import_weights import import_weights as run

    checkpoint, encoder = run(file, out, tree.contract, tree.model, tree.objective)
    model = tree.model.model_copy(update={"vision": encoder.params})
    tree = tree.model_copy(update={"model": model})
    save_params(tree, out / paths.RUN_PARAMS)
    with tracking.track(out, "import_weights", tree, parent=tracking.pipeline(out, tree)):
        pass
    print(f"{encoder.coverage}: {encoder.coverage.fraction:.1%} of the encoder")
    print(checkpoint)


@app.command("evaluate")
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder.")],
    task: Annotated[str, typer.Option("--task", help="A name under `downstream` in params.")],
    out: Out,
    mode: Annotated[str | None, typer.Option("--mode", help="Instead of the task's own.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Instead of the task's own.")] = None,
    fold: Annotated[int | None, typer.Option("--fold", help="Instead of the task's own.")] = None,
    params: ParamsFile = paths.PARAMS,
) -> None:
    """One downstream task: predictions, then scores, then figures; prints the result file last."""
    tree = load_params(params)
    section = tree.downstream.task(task)
    cell = Cell(task, section.mode, section.seed if seed is None else seed, section.fold)
    if fold is not None:
        cell = cell._replace(fold=fold)
    if mode is not None:
        if mode not in section.MODES:
            raise ValueError(f"{task} has no mode {mode}: use {', '.join(section.MODES)}")
        cell = cell._replace(mode=mode)  # type: ignore[arg-type]
    launch.limit_memory(tree.evaluate.max_memory_gb)
    from mg3d import tracking
    from mg3d.downstream import DOWNSTREAM
    from mg3d.finetuning.task import evaluate as run

    parent = tracking.pipeline(checkpoint.parent.parent, tree)
    tree = tree.of_cell(cell)
    save_params(tree, out / paths.RUN_PARAMS)
    with tracking.track(out, str(cell), tree, parent=parent) as tracked:
        tracked.log_datasets(tracking.dvc_hashes(paths.DATA), "evaluation")
        result = run(
            DOWNSTREAM[task],
            checkpoint,
            paths.task_data(task),
            out,
            tree.downstream.task(task),
            tracked.on_metrics,
            openings=paths.RUNS / paths.TEST_OPENINGS,
            cache=paths.RUNS / paths.CACHE,
            cache_gb=tree.evaluate.cache_gb,
        )
        tracked.log_result(result)
        tracked.log_folder(out / paths.FIGURES)
        tracked.log_file(out / paths.SELECTION)
        tracked.log_table(out / paths.CASES)
    print(out / paths.RESULT)


@app.command("write_split")
def write_split(
    task: Annotated[str, typer.Argument(help="A name under `downstream` in params.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="A CSV file; not the task's own split file.")
    ] = None,
    params: ParamsFile = paths.PARAMS,
) -> None:
    """The split file of a downstream task, from its data set; prints the file last."""
    load_params(params).downstream.task(task)
    from mg3d.downstream import DOWNSTREAM
    from mg3d.finetuning import split_files
    from mg3d.ledger import Ledger

    found = DOWNSTREAM[task].cases(paths.task_data(task), Ledger(task, "case"))
    file = out or split_files.split_file(task)
    print(split_files.write_split(task, found, DOWNSTREAM[task].listed, file))


@app.command("register")
def register(
    run: Annotated[Path, typer.Argument(help="A pre-training run's folder.")],
    params: ParamsFile = paths.PARAMS,
) -> None:
    """The run's encoder, towers and evaluated tasks become versions of registered models."""
    from mg3d.registry.registration import register as run_register

    print("\n".join(run_register(run, load_params(params))))


@app.command("promote")
def promote(
    name: Annotated[str, typer.Argument(help="A registered model, e.g. mg3d-stoic2021.")],
    version: Annotated[str, typer.Argument(help="The version that is to be its champion.")],
) -> None:
    """Move the alias `champion` to a version, if it beats nulls and champion; else say why not."""
    from mg3d.registry.promotion import promote as run

    print(run(name, version))


@app.command("predict")
def predict(
    path: Annotated[Path, typer.Argument(help="A NIfTI file, or a folder of DICOM files.")],
    model: Annotated[str, typer.Option("--model", help="E.g. models:/mg3d-stoic2021@champion.")],
    out: Out = Path("predictions"),
    candidates: Annotated[
        Path | None, typer.Option("--candidates", help="Places to judge: a CSV (mg3d-luna16).")
    ] = None,
    finding: Annotated[
        list[str] | None, typer.Option("--finding", help="What to look for (models:/mg3d).")
    ] = None,
) -> None:
    """Ask a registered model about a study: findings, mask, report or nearest cases, as files."""
    from mg3d.registry.prediction import predict as run

    for answer in run(model, path, out, candidates, finding or []):
        print(answer)


@app.command("lineage")
def lineage(
    model: Annotated[str | None, typer.Argument(help="E.g. models:/mg3d-encoder@champion.")] = None,
    patient: Annotated[
        str | None, typer.Option("--patient", help="A pseudonym: what did this patient touch?")
    ] = None,
) -> None:
    """All that a model came from, down to study ids; or all that a patient's data went into."""
    if (model is None) == (patient is None):
        raise ValueError("name a model, e.g. models:/mg3d-encoder@candidate, or --patient ID")
    from mg3d.registry import lineage as registry

    found = registry.of_model(model) if model else registry.of_patient(str(patient))
    print(json.dumps(found, indent=2))


@app.command("reconcile")
def reconcile(
    runs: Annotated[Path, typer.Argument(help="Where runs' folders are.")] = paths.RUNS,
) -> None:
    """MLflow runs whose process was killed are marked KILLED; prints how many."""
    from mg3d import tracking

    killed = tracking.reconcile(runs)
    for folder in killed:
        print(f"{folder}: its process is gone; marked KILLED")
    print(f"{len(killed)} MLflow runs were marked KILLED")


@app.command("ablate")
def ablate(
    source: Source = paths.PREPARED, out: Out = paths.RUNS, params: ParamsFile = paths.PARAMS
) -> None:
    """Does each term help? Pre-train with one term more each time; prints the result file last."""
    tree = load_params(params)
    from mg3d.experiments.ablate import ablate as run

    print(run(source, out, tree))


@app.command("scale")
def scale(
    source: Source = paths.PREPARED, out: Out = paths.RUNS, params: ParamsFile = paths.PARAMS
) -> None:
    """What size brings: data times encoder sizes, a fitted curve; prints the result file last."""
    tree = load_params(params)
    from mg3d.experiments.scale import scale as run

    print(run(source, out, tree))


@app.command("show")
def show(model: Annotated[str, typer.Argument()] = DEFAULT_MODEL) -> None:
    """Look a model up in the registry: version, contract, lineage."""
    from mg3d.registry.encoder import describe

    print(json.dumps(describe(model), indent=2))


@app.command("embed")
def embed(
    source: Source,
    out: Out,
    model: Annotated[str, typer.Option("--model", help="A registered model.")] = DEFAULT_MODEL,
    params: ParamsFile = paths.PARAMS,
) -> None:
    """Embed every study of a DICOM folder with a registered encoder -> one Parquet file."""
    from mg3d.embed import embed as run
    from mg3d.registry.encoder import load_registered

    tree = load_params(params)
    export = tree.sources.dicom_export or DicomExport()
    volumes = export.volumes.model_copy(update={"path": source})
    ledger = run(volumes, out, load_registered(model), tree.convert_volumes)
    _print_summary(ledger.summary())


@app.command("ledger")
def ledger(source: Source = paths.PREPARED) -> None:
    """What every stage used and what it quarantined, with reasons explained."""
    from mg3d.ledger import read_summaries
    from mg3d.ledger_table import render

    print(render(read_summaries(source)))


@app.command("inspect")
def inspect(
    source: Source = paths.PREPARED,
    out: Out = paths.stage_folder("inspect"),
    params: ParamsFile = paths.PARAMS,
) -> None:
    """Pictures of the prepared data: slices, HU, distributions, what was left out."""
    from mg3d.inspection import inspect as run

    tree = load_params(params)
    for picture in run(source, out, tree.inspect, tree.contract, tree.sources):
        print(picture)


@app.command("score")
def score(run: Annotated[Path, typer.Argument(help="A run's folder, or one cell's.")]) -> None:
    """All scores again, from prediction files alone; exit code 1 if one differs from the result."""
    from mg3d.score import score as run_score

    found = run_score(run)
    for cell, (numbers, lines) in found.items():
        print(f"{cell}: {numbers} numbers, {len(lines) or 'none'} of the scores differ")
        print("".join(f"    {line}\n" for line in lines), end="")
    if any(lines for _, lines in found.values()):
        sys.exit(1)


@app.command("table")
def table(run: Annotated[Path, typer.Argument(help="A pre-training run's folder.")]) -> None:
    """Results of all downstream tasks of a run: Markdown here; results.md, .csv and .html there."""
    from mg3d.table import CSV, MARKDOWN, PAGE, values
    from mg3d.table import table as render

    print(render(run))
    if (run / paths.PIPELINE / paths.MLFLOW_RUN_ID).exists():
        from mg3d import tracking

        pipeline = tracking.attach(run / paths.PIPELINE)
        for name in (MARKDOWN, CSV, PAGE):
            pipeline.log_file(run / name)
        pipeline.on_metrics(0, values(run))


def _print_summary(summary: dict[str, object]) -> None:
    reasons = summary["reasons"]
    assert isinstance(reasons, dict)
    line = "{stage}: {inputs} {unit} in = {used} used + {quarantined} quarantined".format(**summary)
    print(line + "".join(f"\n    {count:5d} {reason}" for reason, count in reasons.items()))


def _ignore(step: int, metrics: dict[str, float]) -> None:
    """Metrics of ranks other than 0 go nowhere."""


def main() -> None:
    """Console entry point; exit code 2 and one message for a user's mistake."""
    try:
        app()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        if os.environ.get("MG3D_DEBUG"):
            raise
        sys.exit(2)


if __name__ == "__main__":
    main()
