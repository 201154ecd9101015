import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mg3d.finetuning.reporter import Reporter, encode, train_tokenizer
from mg3d.metrics.findings import FINDINGS
from mg3d.params import CtrgReport

TEXTS = ["A small nodule.", "No pleural effusion. The heart is normal.", "Emphysema."] * 3
TOKENIZER = train_tokenizer(TEXTS, 320)
PARAMS = CtrgReport(num_layers=1, num_heads=2, width=16, max_new_tokens=20, vocabulary_size=320)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_every_text_can_be_written(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids) == text


def test_a_word_that_no_report_has_is_written_and_read() -> None:
    unheard = "Dextrocardia – situs inversus, 12 мм."
    tokens = TOKENIZER.encode(unheard).tokens
    assert TOKENIZER.token_to_id("<unk>") is None
    assert len(tokens) > 10
    assert TOKENIZER.decode(TOKENIZER.encode(unheard).ids) == unheard


def test_ids_begin_end_and_pad() -> None:
    ids = encode(TOKENIZER, ["A small nodule.", "x" * 200], 20)
    assert ids.shape[1] == 21
    assert ids[:, 0].tolist() == [1, 1]
    assert ids[1, -1] == 2  # a text that is cut still ends
    row = ids[0].tolist()
    assert row[row.index(2) + 1 :] == [0] * (20 - row.index(2))
    assert TOKENIZER.decode(row) == "A small nodule."


def told(num_cases: int, *findings: str) -> torch.Tensor:
    row = torch.tensor([int(name in findings) for name in FINDINGS])
    return row.expand(num_cases, -1)


def reporter() -> tuple[Reporter, torch.Tensor]:
    torch.manual_seed(0)
    tokens = torch.randn(6, 4, 8)
    return Reporter(tokens, TOKENIZER.get_vocab_size(), PARAMS, None).eval(), tokens


def test_loss_is_next_token_cross_entropy_without_padding() -> None:
    model, tokens = reporter()
    ids = encode(TOKENIZER, ["A small nodule.", "Emphysema. " * 3], 20)
    loss = model((tokens[:2], told(2), ids))["total"]
    logits = model.decoder(
        input_ids=ids, attention_mask=(ids != 0).long(),
        encoder_hidden_states=model.memory(tokens[:2], told(2)),
    ).logits.log_softmax(-1)  # fmt: skip
    terms = [
        -logits[row, at, ids[row, at + 1]]
        for row in range(2)
        for at in range(ids.shape[1] - 1)
        if ids[row, at + 1] != 0
    ]
    assert loss.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_generation_agrees_with_a_greedy_loop() -> None:
    model, tokens = reporter()
    memory = model.memory(tokens[:3], told(3))
    ids = torch.ones(3, 1, dtype=torch.long)
    with torch.no_grad():
        for _ in range(12):
            logits = model.decoder(input_ids=ids, encoder_hidden_states=memory).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    theirs = model.generate((tokens[:3], told(3)), num_beams=1, max_new_tokens=12)
    assert theirs.tolist() == ids[:, : theirs.shape[1]].tolist()


def test_beams_do_not_mix_the_images() -> None:
    model, tokens = reporter()
    model.project.weight.data.mul_(20)
    together = model.generate((tokens, told(6)), num_beams=3, max_new_tokens=8)
    assert len(together) == 6 * 3  # the drafts of a case stand together
    for row in range(len(tokens)):
        alone = model.generate((tokens[row : row + 1], told(1)), num_beams=3, max_new_tokens=8)
        for draft in range(3):
            ours = TOKENIZER.decode(together[row * 3 + draft].tolist())
            assert TOKENIZER.decode(alone[draft].tolist()) == ours


def test_it_learns_to_tell_two_images_apart() -> None:
    model, tokens = reporter()
    ids = encode(TOKENIZER, ["A small nodule.", "Emphysema."], 20)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model((tokens[:2], told(2), ids))["total"].backward()
        optimizer.step()
    written = model.eval().generate((tokens[:2], told(2)), 2, 15)
    assert TOKENIZER.decode_batch(written[::2].tolist()) == ["A small nodule.", "Emphysema."]


def test_it_learns_to_write_what_it_is_told() -> None:
    model, tokens = reporter()
    same = tokens[:1].expand(2, -1, -1)  # the images say nothing
    findings = torch.cat([told(1, "nodule"), told(1, "emphysema")])
    ids = encode(TOKENIZER, ["A small nodule.", "Emphysema."], 20)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model((same, findings, ids))["total"].backward()
        optimizer.step()
    written = model.eval().generate((same, findings), 1, 15)
    assert TOKENIZER.decode_batch(written.tolist()) == ["A small nodule.", "Emphysema."]
    fresh, _ = reporter()
    fresh.take_language(model)
    assert torch.equal(fresh.prompt, model.prompt)
    assert fresh.prompt is not model.prompt
    assert torch.equal(fresh.decoder.lm_head.weight, model.decoder.lm_head.weight)


def test_without_an_image_all_cases_are_the_same() -> None:
    nothing = torch.zeros(3, 1, 1)
    model = Reporter(nothing, TOKENIZER.get_vocab_size(), PARAMS, None).eval()
    memory = model.memory(nothing, told(3))
    assert memory.shape == (3, 1 + len(FINDINGS), PARAMS.width)
    assert torch.equal(memory[0], memory[2])
