import numpy as np
import torch
from torch import Tensor

from mg3d.finetuning.reranking import rerank

TOKENS = [torch.full((2, 1), value) for value in (0.0, 1.0, 2.0, 3.0)]
SENTENCES = [torch.full((length, 1), 10.0 * length) for length in (1, 2, 3, 4)]
SIMILARITY = np.array(
    [[0.9, 0.1, 0.2, 0.3], [0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.8, 0.7, 0.6, 0.1]]
)


class SumOfBoth(torch.nn.Module):
    """Matches a pair by a number that tells which pair it was."""

    def match(self, image: Tensor, sentences: Tensor, mask: Tensor) -> Tensor:
        assert mask.all()
        return image[:, 0, 0] + sentences[:, 0, 0]


def test_both_directions_ask_and_each_pair_is_computed_once() -> None:
    again = rerank(SumOfBoth(), TOKENS, SENTENCES, SIMILARITY, 2)  # type: ignore[arg-type]
    computed = ~np.isnan(again.pair)
    # Texts ask for (0; 0, 3), (1; of four ties two that are wrong: 0, 2), (2; 3, 2), (3; 0, 1);
    # volumes for (0; 0, 3), (1; 3, 1), (2; 3, 1), (3; 1, 2).
    assert computed.tolist() == [
        [True, False, False, True],
        [True, True, True, True],
        [False, False, True, True],
        [True, True, True, False],
    ]
    assert again.pair_forwards == computed.sum() == 11
    assert again.seconds > 0
    expected = np.arange(4)[None, :] + 10 * np.arange(1, 5)[:, None]
    assert np.array_equal(again.pair[computed], expected[computed])


def test_the_whole_gallery_is_every_pair() -> None:
    again = rerank(SumOfBoth(), TOKENS, SENTENCES, SIMILARITY, 9)  # type: ignore[arg-type]
    assert again.pair_forwards == 16
