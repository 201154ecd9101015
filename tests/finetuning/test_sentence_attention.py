from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mg3d.finetuning import sentence_attention
from mg3d.finetuning.images import PackedCases
from mg3d.finetuning.task import Case
from mg3d.params import VolumeContract

TEXT = "The heart is normal. A nodule in the left lung. No effusion. Emphysema."


class Fused:
    """A model of a 1x2x2 token grid whose sentence s gives token n the weight s + n / 10."""

    vision_encoder: Any = None

    def __init__(self) -> None:
        self.vision_encoder = self

    def grid(self, volume: Tensor) -> tuple[int, int, int]:
        assert volume.shape == (1, 1, 32, 64, 64)
        return 1, 2, 2

    def sentence_weights(self, image: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
        number, token = torch.arange(sentences.shape[1]), torch.arange(image.shape[1])
        return (number[:, None] + token / 10)[None]


def test_sentences_that_find_something_are_shown_with_their_weights(tmp_path: Path) -> None:
    contract = VolumeContract(spacing_mm=(10.0, 6.0, 6.0), shape_voxels=(32, 64, 64))
    volume = np.full((32, 64, 64), -1000, np.int16)
    volume[31, 63, 63] = volume[16, 63, 63] = 1000  # head, front, right; and in the axial plane
    np.save(tmp_path / "c1.npy", volume)
    case = Case("c1", "p1", tmp_path, text=TEXT)
    sentence_attention.write(
        tmp_path, Fused(), [case], [torch.zeros(4, 8)], [torch.zeros(3, 8)],  # type: ignore[arg-type]
        PackedCases(tmp_path, contract),
    )  # fmt: skip
    with np.load(tmp_path / sentence_attention.FILE) as file:
        # The report was cut after three sentences: emphysema never met the image.
        assert file["texts_0"].tolist() == ["The heart is normal.", "A nodule in the left lung."]
        assert np.allclose(file["weights_0"][1], [[[1.0, 1.1], [1.2, 1.3]]])
        assert file["axial_0"].shape == (64, 64)
        assert file["axial_0"][0, 0] == 255  # front row first, the patient's right at the left
        assert file["coronal_0"].shape == (32, 64)
        assert file["sagittal_0"].shape == (32, 64)
    figures = sentence_attention.draw(tmp_path)
    assert list(figures) == ["sentence_attention"]
    assert sentence_attention.draw(tmp_path / "nothing") == {}
