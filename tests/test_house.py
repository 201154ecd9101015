"""The house holds together: names, files and doors agree (design section 8).

``python tests/test_house.py`` prints the code ``deps`` that dvc.yaml must list for each stage.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from mg3d.params import Params, load_params

ROOT = Path(__file__).parents[1]
_WRITTEN = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# A stage for each source is written once, below `do`.
STAGES: dict[str, dict[str, Any]] = {name: s.get("do", s) for name, s in _WRITTEN.items()}
OF_EACH_SOURCE = {name for name, stage in _WRITTEN.items() if "do" in stage}


def sections(section: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Dotted key -> class of each section and of the sections in it."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            key = prefix + (field.alias or name)
            found |= {key: field.annotation.__name__, **sections(field.annotation, f"{key}.")}
    return found


SECTIONS = sections(Params)
MAX_TRACKED_BYTES = 1024 * 1024


@cache
def stage_functions() -> dict[str, tuple[str, ast.FunctionDef]]:
    """Public function -> (module, definition) over mg3d/data/*.py and the stage that draws."""
    found: dict[str, tuple[str, ast.FunctionDef]] = {}
    for file in [*sorted((ROOT / "mg3d" / "data").glob("*.py")), ROOT / "mg3d/inspection.py"]:
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = (module, node)
    return found


@cache
def import_graph() -> Any:
    import grimp

    return grimp.build_graph("mg3d", exclude_type_checking_imports=True, cache_dir=None)


def code_deps(stage: str) -> list[str]:
    """Files that decide what the stage writes: its module and what that imports, transitively.

    Not the packages' empty ``__init__.py`` and not the CLI, which only parses and calls.
    """
    graph = import_graph()
    module, _ = stage_functions()[stage]
    files = []
    for name in {module, *graph.find_upstream_modules(module)}:
        path = Path(*name.split("."))
        is_package = (ROOT / path).is_dir()
        files.append((path / "__init__.py" if is_package else path.with_suffix(".py")).as_posix())
    return sorted(files)


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


def tracked_texts() -> list[tuple[str, str]]:
    texts = []
    for file in tracked_files():
        try:
            texts.append((file.relative_to(ROOT).as_posix(), file.read_text()))
        except UnicodeDecodeError:
            continue
    return texts


# A stage has one name -------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_verb_a_function_and_a_params_section(stage: str) -> None:
    from mg3d.cli import app

    assert stage in {command.name for command in app.registered_commands}
    assert stage in stage_functions()
    assert stage in SECTIONS
    source = " ${key}" if stage in OF_EACH_SOURCE else ""
    assert STAGES[stage]["cmd"] == f"python -m mg3d.cli {stage}{source}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reruns_for_the_sections_that_its_function_takes(stage: str) -> None:
    _, definition = stage_functions()[stage]
    taken = {
        ast.unparse(argument.annotation) for argument in definition.args.args if argument.annotation
    }
    sections = SECTIONS | {
        "sources.${key}.volumes": "SourceVolumes",
        "sources.${key}.reports": "SourceReports",
    }
    assert set(STAGES[stage]["params"]) == {key for key, name in sections.items() if name in taken}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reruns_for_the_code_that_it_imports(stage: str) -> None:
    listed = sorted(dep for dep in STAGES[stage]["deps"] if dep.startswith("mg3d/"))
    assert listed == code_deps(stage), "python tests/test_house.py prints what to list"


def test_the_packages_on_a_stages_way_hold_no_code() -> None:
    """Which is why code_deps may leave them out."""
    for package in ("mg3d/data", "mg3d/data/ct", "mg3d/data/sources", "mg3d/models"):
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body), package


def written_by(stage: dict[str, Any]) -> list[str]:
    items = [*stage.get("outs", []), *stage.get("metrics", [])]
    return [next(iter(item)) if isinstance(item, dict) else item for item in items]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_into_its_own_folder_and_its_ledger_is_a_metric(stage: str) -> None:
    if "plots" in STAGES[stage]:  # it uses up nothing
        assert all(path.startswith(f"prepared/{stage}/") for path in STAGES[stage]["plots"])
        return
    paths = written_by(STAGES[stage])
    folder = f"prepared/{stage}/" + ("${key}/" if stage in OF_EACH_SOURCE else "")
    assert all(path.startswith(folder) for path in paths)
    assert f"{folder}ledger.json" in str(STAGES[stage]["metrics"])


def test_what_a_stage_reads_is_data_or_another_stages_output() -> None:
    made = {path for stage in STAGES.values() for path in written_by(stage)}
    made |= {f"prepared/{stage}" for stage in STAGES}  # all that it wrote
    for name, stage in STAGES.items():
        for dep in stage["deps"]:
            known = dep in made or dep.startswith(("${item.", "mg3d/"))
            assert known, f"{name} reads {dep}"


# A downstream task has one name ---------------------------------------------------------------


def test_downstream_files_are_tasks_are_sections_are_tests() -> None:
    from mg3d.downstream import DOWNSTREAM

    def stems(folder: str, pattern: str) -> set[str]:
        return {path.stem for path in (ROOT / folder).glob(pattern)}

    files = stems("mg3d/downstream", "[!_]*.py")
    assert files == set(DOWNSTREAM)
    assert files == set(load_params(ROOT / "params.yaml").downstream.model_dump())
    assert files <= {name.removeprefix("test_") for name in stems("tests/downstream", "test_*.py")}


# Params -----------------------------------------------------------------------------------------

PROFILES = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]


def keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in tree.items():
        found |= keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_loads_and_writes_out_every_key(profile: Path) -> None:
    loaded = load_params(profile).model_dump(mode="json", by_alias=True)
    assert keys(yaml.safe_load(profile.read_text())) == keys(loaded)


def test_the_profiles_of_the_paper_have_its_sizes() -> None:
    widths = {stem: load_params(ROOT / "params" / f"{stem}.yaml") for stem in ("swin_b", "swin_l")}
    assert {stem: params.model.vision.embed_dim for stem, params in widths.items()} == {
        "swin_b": 48,
        "swin_l": 96,
    }
    for params in widths.values():
        assert params.contract.shape_voxels == (128, 96, 128)
        assert params.model.vision.window_voxels == 7
        assert params.model.text.name_or_folder == "StanfordAIMI/RadBERT"


# What is in git -----------------------------------------------------------------------------------


def test_no_tracked_file_is_over_one_mebibyte() -> None:
    sizes = {file.relative_to(ROOT).as_posix(): file.stat().st_size for file in tracked_files()}
    assert {name: size for name, size in sizes.items() if size > MAX_TRACKED_BYTES} == {}


def test_no_tracked_file_names_a_machines_path() -> None:
    homes = "|".join(["home", "root", "Users", "work", "mnt", "scratch"])
    machine_path = re.compile(rf"(?<![\w.$}})/])/(?:{homes})/\w")
    found = {
        f"{name}:{number}: {line.strip()}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.splitlines(), 1)
        if machine_path.search(line)
    }
    assert found == set()


def test_nothing_tracked_lies_in_the_folders_of_data_and_results() -> None:
    tops = {file.relative_to(ROOT).parts[0] for file in tracked_files()}
    assert not tops & {"data", "prepared", "runs", ".venv"}


# Habits ---------------------------------------------------------------------------------------


README = (ROOT / "README.md").read_text()


def test_the_readmes_two_commands_are_those_that_ci_runs() -> None:
    first_block = README.split("```")[1]
    commands = re.findall(r"^make \w+", first_block, re.MULTILINE)
    assert commands == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text()
    for command in commands:
        assert re.search(rf"^part .* {command}\b", ci, re.MULTILINE), f"CI does not run {command}"


def test_what_the_readme_tells_to_type_exists() -> None:
    from mg3d.cli import app

    verbs = {command.name for command in app.registered_commands}
    flows = {path.stem for path in (ROOT / "flows").glob("*.py")}
    targets = set(
        re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    quoted = re.findall(r"```\w*\n(.*?)```|`([^`\n]+)`", README, re.DOTALL)
    code = "\n".join(block or inline for block, inline in quoted)
    assert set(re.findall(r"\bmake ([a-z][\w-]*)", code)) <= targets
    assert set(re.findall(r"\bmg3d ([a-z]\w*)", code)) <= verbs
    assert set(re.findall(r"python -m flows\.(\w+)", code)) <= flows


def test_telemetry_is_off_for_the_servers_too() -> None:
    import mg3d

    makefile = (ROOT / "Makefile").read_text()
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for name, value in mg3d.TELEMETRY_OFF.items():
        assert f"export {name} = {value}\n" in makefile
        assert re.search(rf"^(ENV| ).*\b{name}={value}\b", dockerfile, re.MULTILINE), name


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    for stage_name in STAGES:
        print(stage_name, *(f"      - {dep}" for dep in code_deps(stage_name)), sep="\n")
