"""A wrong or misspelt param fails before anything runs, naming the key and the remedy."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mg3d.params import (
    Model,
    Params,
    load_params,
    resolve,
    save_params,
)

DEMO = Path(__file__).parents[1] / "params.yaml"


@pytest.fixture
def tree() -> dict[str, Any]:
    return yaml.safe_load(DEMO.read_text())


def load(tree: object, folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return load_params(path)


def assign(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree[section]
    tree[last] = value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"contract.shape_voxels": [64, 60, 64]},
            r"contract: shape_voxels \(64, 60, 64\) .* 64, 96",
        ),
        (
            {"contract.spacing_mm": [1.0, 0.0, 1.0]},
            r"spacing_mm \(1.0, 0.0, 1.0\) must be positive",
        ),
        ({"contract.window_hu": [500, -1000]}, r"window_hu \(500, -1000\) .* low < high"),
        (
            {"contract.orientation": "LPS"},
            r"contract.orientation: Input should be 'RAS' \(got 'LPS'",
        ),
        (
            {"build_manifest.test_fraction": 0.8, "build_manifest.validation_fraction": 0.1},
            r"build_manifest: validation_fraction \+ test_fraction leave under 10 %",
        ),
        (
            {"model.vision.num_heads": [2, 4, 8, 15]},
            r"model.vision: embed_dim 12 gives 96 channels at level 3, not divisible by num_heads",
        ),
        (
            {"model.vision.name": "unet3d", "model.vision.merging": "legacy"},
            r"model.vision: merging legacy .* unet3d has none: use merging fixed, or name swin",
        ),
        (
            {"model.vision.name": "dynunet", "model.vision.embed_dim": 13},
            r"model.vision: dynunet begins with embed_dim / 2 channels .* 13: use an even one",
        ),
        ({"model.vision.name": "resnet"}, r"model.vision.name: .*'dynunet' \(got 'resnet'"),
        (
            {
                f"objective.{term}_weight": 0.0
                for term in ("mlm", "sfr", "mim", "cml", "dfa", "ssm", "itc")
            },
            r"objective: all objective weights are 0: give mim_weight or itc_weight a value",
        ),
        (
            {"objective.mlm_weight": 0.0},
            r"objective: sfr_weight needs mlm_weight > 0: both read the masked text pass",
        ),
        (
            {"objective.ssm_dissimilar_to": 0.95},
            r"ssm_dissimilar_to 0.95 must be below ssm_similar_from 0.9",
        ),
        (
            {"pretrain.batch_size": 15},
            r"pretrain: batch_size 15 is shared by num_ranks 2 ranks: make it a multiple, e.g. 14",
        ),
        ({"pretrain.batch_size": 1}, r"make it a multiple, e.g. 2"),
        (
            {"objective.mim_block_voxels": 24},
            r"objective.mim_block_voxels 24 must divide contract.shape_voxels .* use 16 or 8",
        ),
        ({"pretrain.num_steps": 0}, r"pretrain.num_steps: .* greater than or equal to 1 \(got 0\)"),
        ({"pretrain.num_steps": 2.5}, r"pretrain.num_steps: Input should be a valid integer.*2.5"),
        ({"pretrain.learning_rate": float("inf")}, r"pretrain.learning_rate: .* finite number"),
        ({"pretrain.learning_rate": float("nan")}, r"pretrain.learning_rate: .* finite number"),
        ({"pretrain.precision": "float16"}, r"pretrain.precision: .*'bfloat16' \(got 'float16'\)"),
        (
            {"downstream.stoic2021.mode": "linear"},
            r"downstream.stoic2021.mode: .*'frozen', 'finetune'",
        ),
        ({"downstream.covid19_20.crop_voxels": [32, 32, 30]}, r"crop_voxels .* multiples of 32"),
        ({"downstream.acdc.spacing_mm": [None, 0.0, 1.5]}, r"positive, or null for an axis"),
        ({"downstream.msd_lung.window_hu": [400, -1000]}, r"must be \(low, high\)"),
        ({"pretrain.train_fraction": 0.0}, r"pretrain.train_fraction: .* greater than 0 \(got 0"),
        ({"ablate.seeds": [0, 0]}, r"ablate: seeds \[0, 0\] has a value twice"),
        ({"ablate.seeds": []}, r"ablate.seeds: .* at least 1 item"),
        ({"ablate.tasks": ["luna"]}, r"unknown downstream task 'luna': choose from stoic2021"),
        ({"scale.train_fractions": [0.5, 1.5]}, r"scale: train_fractions has 1.5: each is above 0"),
        (
            {"scale.embed_dims": [16], "model.vision.num_heads": [3, 6, 12, 24]},
            r"scale.embed_dims has 16: embed_dim 16 gives 16 channels at level 0, not divisible",
        ),
        ({"downstream.ctrg_report.width": 130}, r"width 130 must be a multiple of num_heads 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_names_key_and_remedy(
    tree: dict[str, Any], changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    for key, value in changes.items():
        assign(tree, key, value)
    with pytest.raises(ValueError, match=message) as caught:
        load(tree, tmp_path)
    assert "Value error" not in str(caught.value)
    assert str(tmp_path / "params.yaml") in str(caught.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("pretrian", "pretrain"),
        ("pretrain.learning_rat", "learning_rate"),
        ("model.vision.embed_dims", "embed_dim"),
        ("downstream.stoic2020", "stoic2021"),
        ("downstream.ctrg_report.num_beam", "num_beams"),
        ("registr", "register"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(
    tree: dict[str, Any], key: str, near: str, tmp_path: Path
) -> None:
    assign(tree, key, 1)
    with pytest.raises(ValueError, match=rf"\n  {key}: unknown key; did you mean {near}\?"):
        load(tree, tmp_path)


def test_an_unknown_key_like_no_other_is_to_be_removed(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    assign(tree, "pretrain.xyzzy", 1)
    with pytest.raises(ValueError, match=r"pretrain.xyzzy: unknown key; remove it"):
        load(tree, tmp_path)


@pytest.mark.parametrize("section", yaml.safe_load(DEMO.read_text()))
def test_every_section_must_be_there(tree: dict[str, Any], section: str, tmp_path: Path) -> None:
    del tree[section]
    with pytest.raises(ValueError, match=rf"\n  {section}: missing; copy the section from a file"):
        load(tree, tmp_path)


def test_all_mistakes_are_named_at_once(tree: dict[str, Any], tmp_path: Path) -> None:
    assign(tree, "pretrain.sed", 1)
    assign(tree, "pretrain.clip_norm", -1.0)
    del tree["register"]
    with pytest.raises(ValueError, match=r"params\.yaml:") as caught:
        load(tree, tmp_path)
    for key in ("pretrain.sed", "pretrain.clip_norm", "register"):
        assert f"\n  {key}: " in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    text = re.sub(r"\n  num_steps: \d+", r"\g<0>\n  num_steps: 15", DEMO.read_text(), count=1)
    with pytest.raises(ValueError, match=r"'num_steps' is given twice(.|\n)*line \d+"):
        load(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no sections: copy a file from params/"),
        ("- a\n- b\n", "holds no sections"),
        ("contract: [1, 2\n", "is not valid YAML"),
    ],
)
def test_a_file_of_another_kind(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(text, tmp_path)


def test_no_file_says_where_one_is(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ValueError, match=r"no params file at .*: copy one from params/"):
            load_params(path)


def test_sections_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_params(DEMO).pretrain.seed = 1  # type: ignore[misc]


def test_saved_params_load_as_the_same(tmp_path: Path) -> None:
    params = load_params(DEMO)
    save_params(params, tmp_path / "run" / "params.yaml")
    assert load_params(tmp_path / "run" / "params.yaml") == params


def test_a_digest_is_of_the_values_alone(tree: dict[str, Any], tmp_path: Path) -> None:
    before = load(tree, tmp_path)
    tree["contract"] = dict(reversed(tree["contract"].items()))
    assert load(tree, tmp_path).contract.digest() == before.contract.digest()
    tree["contract"]["spacing_mm"] = [5.5, 6.0, 6.25]
    assert load(tree, tmp_path).contract.digest() != before.contract.digest()


def test_downstream_tasks_are_all_or_those_chosen() -> None:
    params = load_params(DEMO)
    assert params.downstream_tasks() == list(params.downstream.model_dump())
    assert params.downstream_tasks(["ctrg_report"]) == ["ctrg_report"]
    with pytest.raises(
        ValueError, match=r"unknown downstream task 'luna17': choose from stoic2021"
    ):
        params.downstream_tasks(["luna17"])


def test_retrieval_without_a_dual_encoder_is_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    assign(tree, "objective.itc_weight", 0.0)
    params = load(tree, tmp_path)
    assert params.downstream_tasks(["stoic2021"]) == ["stoic2021"]
    with pytest.raises(
        ValueError, match=r"ct_rate_retrieval .* objective.itc_weight 0 .* e.g. 0.1"
    ):
        params.downstream_tasks()


def test_a_linear_pool_names_the_tokens_it_needs() -> None:
    tree = yaml.safe_load(DEMO.read_text())
    tree["model"]["fusion_pool"] = "linear"
    with pytest.raises(ValueError, match="a linear pool needs the number"):
        Params.model_validate(tree)
    tree["model"]["num_image_tokens"] = 48
    with pytest.raises(ValueError, match=r"48 is not the 4 tokens.*set it to 4"):
        Params.model_validate(tree)
    tree["model"]["num_image_tokens"] = 4
    assert Params.model_validate(tree).model.num_image_tokens == 4


def test_cross_attention_has_no_gates_to_pool() -> None:
    with pytest.raises(ValueError, match="cross_attention has none"):
        Model(fusion="cross_attention", fusion_pool="attention")


def test_cells_are_tasks_times_their_modes_times_seeds(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    demo = load(tree, tmp_path)
    own = dict(demo.downstream)
    assert demo.cells() == [(name, own[name].mode, own[name].seed, own[name].fold) for name in own]
    assign(tree, "evaluate.modes", ["scratch", "frozen"])
    assign(tree, "evaluate.seeds", [0, 1])
    wide = load(tree, tmp_path)
    assert list(map(str, wide.cells(["ct_rate_retrieval", "stoic2021"]))) == [
        "ct_rate_retrieval/frozen-seed0",  # it knows no scratch
        "ct_rate_retrieval/frozen-seed1",
        "stoic2021/scratch-seed0",
        "stoic2021/scratch-seed1",
        "stoic2021/frozen-seed0",
        "stoic2021/frozen-seed1",
    ]
    of_cell = wide.of_cell(wide.cells(["stoic2021"])[1])
    assert (of_cell.downstream.stoic2021.mode, of_cell.downstream.stoic2021.seed) == ("scratch", 1)
    assert of_cell.downstream.covid19_20 == wide.downstream.covid19_20
    assign(tree, "evaluate.seeds", [1, 1])
    with pytest.raises(ValueError, match=r"seeds \[1, 1\] has a value twice"):
        load(tree, tmp_path)


def test_folds_are_cells_where_a_task_has_them(tree: dict[str, Any], tmp_path: Path) -> None:
    assign(tree, "downstream.luna16.mode", "frozen")
    assign(tree, "evaluate.folds", [4, 9])
    crossed = load(tree, tmp_path)
    assert list(map(str, crossed.cells(["luna16", "acdc"]))) == [
        "luna16/frozen-seed0-fold4",
        "luna16/frozen-seed0-fold9",
        "acdc/finetune-seed0-fold4",  # it has five
    ]
    assert crossed.of_cell(crossed.cells(["acdc"])[0]).downstream.acdc.fold == 4
    assign(tree, "downstream.acdc.fold", 5)
    with pytest.raises(ValueError, match="fold 5: there are 5, 0 is the first"):
        load(tree, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretrain.num_stps": 3}, r"params.yaml with pretrain.num_stps overridden:\n  "
         r"pretrain.num_stps: unknown key; did you mean num_steps\?"),
        ({"pretrian.num_steps": 3}, r"pretrian: unknown key; did you mean pretrain\?"),
        ({"pretrain.num_steps": 0}, r"pretrain.num_steps: .* greater than or equal to 1 \(got 0\)"),
        ({"objective.mim_block_voxels": 9}, r"mim_block_voxels 9 must divide"),
        ({"pretrain": {"num_steps": 3}}, r"override 'pretrain': name a key in its section"),
        ({"pretrain.": 3}, r"override 'pretrain.': name a key in its section"),
        ({"pretrain.seed.x": 3}, r"override 'pretrain.seed.x': pretrain.seed is no section"),
    ],
)  # fmt: skip
def test_an_override_is_checked_like_the_file(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_params(DEMO, overrides)


def test_overrides_change_what_they_name_alone() -> None:
    overrides = {
        "pretrain.num_steps": 3,
        "downstream.luna16.mode": "scratch",
        "register.name": "mine",
        "sources.ctrg_chest": None,
        "sources.dicom_export.volumes.strict": True,
    }
    changed = load_params(DEMO, overrides).model_dump(mode="json", by_alias=True)
    before = load_params(DEMO).model_dump(mode="json", by_alias=True)
    for key, value in overrides.items():
        assign(before, key, value)
    assert changed == before


def test_resolved_params_are_a_file_named_after_its_content(tmp_path: Path) -> None:
    assert resolve(DEMO, {}, tmp_path) == DEMO
    assert not list(tmp_path.iterdir())
    file = resolve(DEMO, {"pretrain.seed": 7, "pretrain.num_steps": 3}, tmp_path)
    assert file.parent == tmp_path
    assert load_params(file) == load_params(DEMO, {"pretrain.num_steps": 3, "pretrain.seed": 7})
    assert resolve(file, {}) == file
    assert resolve(DEMO, {"pretrain.num_steps": 3, "pretrain.seed": 7}, tmp_path) == file
    assert resolve(DEMO, {"pretrain.seed": 8}, tmp_path) != file
    with pytest.raises(ValueError, match="did you mean num_steps"):
        resolve(DEMO, {"pretrain.num_stps": 7}, tmp_path)
