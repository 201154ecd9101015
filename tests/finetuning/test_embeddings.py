"""A volume is embedded once per encoder and content, whoever asks."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from torch import Tensor

from mg3d.finetuning.embeddings import embedded, encoder_sha256
from mg3d.finetuning.images import packed_cases, source_sha256
from mg3d.finetuning.store import keeping
from mg3d.finetuning.task import Case
from mg3d.ledger import Ledger
from mg3d.models.vision import VolumeEncoder, features_of, tokens_of, vision_encoder
from mg3d.params import VisionEncoder, VolumeContract

CONTRACT = VolumeContract(spacing_mm=(6.0, 6.0, 6.0), shape_voxels=(32, 32, 64))
PARAMS = VisionEncoder(embed_dim=4, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), window_voxels=2)


def tiny(seed: int) -> VolumeEncoder:
    torch.manual_seed(seed)
    return vision_encoder(PARAMS).eval()


@pytest.fixture(scope="module")
def encoders() -> tuple[VolumeEncoder, VolumeEncoder]:
    return tiny(0), tiny(1)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(5):
        image = SimpleITK.GetImageFromArray(
            generator.integers(-1000, 300, (12, 16, 16)).astype(np.int16)
        )
        image.SetSpacing((9, 9, 12))
        name = f"{number}.{'mhd' if number else 'mha'}"
        SimpleITK.WriteImage(image, str(tmp_path / name))
        found.append(Case(f"case-{number}", f"patient-{number}", tmp_path / name))
    return found


class Counting:
    """An encoder's passes, and what `embedded` makes of them."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.volumes = cache, 0

    def __call__(
        self,
        encoder: VolumeEncoder,
        cases: list[Case],
        contract: VolumeContract = CONTRACT,
        read: "type[Tensor] | object" = features_of,
    ) -> tuple[int, dict[str, Tensor]]:
        passes = 0
        original = encoder.last_map

        def counted(volume: Tensor) -> Tensor:
            nonlocal passes
            passes += 1
            return original(volume)

        encoder.last_map = counted  # type: ignore[method-assign]
        try:
            split = {"train": cases[:3], "test": cases[3:]}
            ledger = Ledger("task", "case", [case.case_id for case in cases])
            with keeping(self.cache), packed_cases(split, contract, ledger) as volumes:
                known = split["train"] + split["test"]
                found = embedded(encoder, known, volumes, read)  # type: ignore[arg-type]
        finally:
            del encoder.last_map
        return passes, found


def test_the_second_cell_makes_no_pass_and_gets_the_same_numbers(
    tmp_path: Path, cases: list[Case], encoders: tuple[VolumeEncoder, VolumeEncoder]
) -> None:
    run = Counting(tmp_path / "cache")
    passes, first = run(encoders[0], cases)
    assert passes == 2  # batches of four
    assert list(first) == [case.case_id for case in cases]
    passes, second = run(tiny(0), cases[::-1])  # the same weights, loaded by another process
    assert passes == 0
    assert all(torch.equal(first[name], second[name]) for name in first)
    passes, tokens = run(encoders[0], cases, read=tokens_of)  # another kind of task
    assert passes == 0
    assert tokens["case-0"].shape == (2, 64)
    passes, other = run(encoders[1], cases)
    assert passes == 2
    assert not torch.equal(first["case-0"], other["case-0"])


def test_a_changed_byte_setting_or_weight_is_embedded_anew(
    tmp_path: Path, cases: list[Case], encoders: tuple[VolumeEncoder, VolumeEncoder]
) -> None:
    run = Counting(tmp_path / "cache")
    _, first = run(encoders[0], cases)
    raw = cases[2].image.with_suffix(".raw")
    raw.write_bytes(b"\x10\x00" + raw.read_bytes()[2:])  # one voxel, in the file beside the header
    passes, found = run(encoders[0], cases)
    assert passes == 1
    assert not torch.equal(first["case-2"], found["case-2"])
    assert torch.equal(first["case-1"], found["case-1"])
    passes, _ = run(encoders[0], cases, CONTRACT.model_copy(update={"window_hu": (-900, 900)}))
    assert passes == 2
    encoder = tiny(0)
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    passes, _ = run(encoder, cases)
    assert passes == 2


def test_an_encoder_is_its_weights_and_its_settings() -> None:
    assert encoder_sha256(tiny(0)) == encoder_sha256(tiny(0))
    legacy = PARAMS.model_copy(update={"merging": "legacy"})
    torch.manual_seed(0)
    same_weights = vision_encoder(legacy)
    same_weights.load_state_dict(tiny(0).state_dict())
    assert encoder_sha256(same_weights) != encoder_sha256(tiny(0))


def test_a_volumes_numbers_do_not_depend_on_its_batch(
    tmp_path: Path, cases: list[Case], encoders: tuple[VolumeEncoder, VolumeEncoder]
) -> None:
    _, together = Counting(tmp_path / "one")(encoders[0], cases)
    for case in cases:
        _, alone = Counting(tmp_path / case.case_id)(encoders[0], [case])
        assert torch.equal(alone[case.case_id], together[case.case_id])


def test_transformed_volumes_have_maps_of_their_own(
    tmp_path: Path, cases: list[Case], encoders: tuple[VolumeEncoder, VolumeEncoder]
) -> None:
    split = {"train": cases}
    ledger = Ledger("task", "case", [case.case_id for case in cases])
    with keeping(tmp_path / "cache"), packed_cases(split, CONTRACT, ledger) as volumes:
        plain = embedded(encoders[0], cases, volumes, features_of)
        blank = embedded(
            encoders[0], cases, volumes.through("blank", torch.zeros_like), features_of
        )
    assert not torch.equal(plain["case-0"], blank["case-0"])
    assert torch.equal(blank["case-0"], blank["case-1"])


def test_sources_that_cannot_be_named_are_not_kept(tmp_path: Path, cases: list[Case]) -> None:
    import dataclasses

    def read() -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((4, 4, 4), np.int16), np.eye(4)

    one = cases[0]
    assert source_sha256(dataclasses.replace(one, read=read)) is None
    named = [source_sha256(dataclasses.replace(one, read=read, facts=f)) for f in ("slope 1", "2")]
    assert None not in named
    assert len({source_sha256(one), *named}) == 3
    header = cases[1].image
    assert source_sha256(cases[1]) != source_sha256(cases[2])
    header.write_text(header.read_text().replace("1.raw", "LIST"))
    assert source_sha256(cases[1]) is None
    assert source_sha256(Case("x", "x", tmp_path / "absent.mha")) is None
