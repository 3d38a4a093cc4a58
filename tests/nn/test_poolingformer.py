# SPDX-License-Identifier: Apache-2.0
"""Poolingformer's encoder and models: what they compute, loaded weights against plain torch and transformers."""

import copy

import pytest
import torch
from innerloop.nn import (
    PoolingAttention,
    PoolingformerEncoder,
    PoolingformerForMaskedLM,
    PoolingformerForQuestionAnswering,
    PoolingformerForSequenceClassification,
    PoolingformerForSummarization,
    SlidingWindowAttention,
    load_roberta,
    position_copies,
)
from nn.poolingformer_cases import DIM, HEADS, dense, heads, merge, randomize
from tolerances import assert_close
from torch import Tensor
from torch.nn import functional as F

VOCAB, PAD = 30, 1


def encoder(**options) -> PoolingformerEncoder:
    defaults = {"window": (16, 16), "pool_window": 32, "max_length": 64, "dropout": 0.0, "padding_idx": PAD}
    return PoolingformerEncoder(VOCAB, DIM, 4, HEADS, **{**defaults, **options})


def tokens(batch=2, length=24) -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(2, VOCAB, (batch, length))
    valid = (torch.arange(length) < torch.tensor([length, length - 5])[:, None])[:batch]
    return ids.masked_fill(~valid, PAD), valid, torch.tensor([[0, 1], [0, -1]])


def roberta_state(num_layers=4, dim=DIM, positions=40, prefix="roberta.") -> dict[str, Tensor]:
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, dim),
        "embeddings.position_embeddings.weight": (positions + 2, dim),
        "embeddings.token_type_embeddings.weight": (1, dim),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(num_layers):
        at = f"encoder.layer.{i}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"{at}{name}.weight"] = (dim, dim)
        shapes[f"{at}intermediate.dense.weight"], shapes[f"{at}output.dense.weight"] = (4 * dim, dim), (dim, 4 * dim)
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
    shapes |= {f"{name}.weight": (dim,) for name in norms}
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if "_embeddings" not in name}
    state = {prefix + name: 0.4 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return state | {"lm_head.bias": torch.zeros(VOCAB)}


def plain_roberta(state: dict[str, Tensor], ids: Tensor, valid: Tensor) -> Tensor:
    state = {name.removeprefix("roberta."): t for name, t in state.items()}

    def apply(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    position = 1 + valid.cumsum(1)
    x = state["embeddings.word_embeddings.weight"][ids] + state["embeddings.position_embeddings.weight"][position]
    x = norm("embeddings.LayerNorm", x + state["embeddings.token_type_embeddings.weight"][0])
    for i in range(4):
        at = f"encoder.layer.{i}."
        q, k, v = (heads(apply(f"{at}attention.self.{name}", x)) for name in ("query", "key", "value"))
        attended = merge(dense(q, k, v, valid[:, None].expand(-1, len(ids[0]), -1)))
        x = norm(f"{at}attention.output.LayerNorm", x + apply(f"{at}attention.output.dense", attended))
        hidden = F.gelu(apply(f"{at}intermediate.dense", x))
        x = norm(f"{at}output.LayerNorm", x + apply(f"{at}output.dense", hidden))
    return x


@pytest.mark.parametrize("init", ["normal", "copy_level1"])
def test_a_loaded_roberta_is_unchanged_at_step_0(init):
    model = encoder(window=(24, 24), zero_value=True, init=init, two_level=[1, 3]).double().eval()
    state = roberta_state()
    assert load_roberta(model, state) == ["lm_head.bias"]
    ids, valid, _ = tokens()
    expected = plain_roberta(state, ids, valid)
    assert_close(model(ids, valid)[valid], expected[valid])
    # The global projections are copies, and a window that covers everything makes global tokens like the others.
    assert_close(model(ids, valid, torch.tensor([[0, 3], [2, -1]]))[valid], expected[valid])
    assert torch.equal(model.positions.weight[40:], model.positions.weight[:24])
    key = model.layers[3].attention.key_pool.weight
    assert torch.equal(key, model.layers[3].attention.key.weight) == (init == "copy_level1")


def test_equals_roberta_of_transformers():
    roberta = pytest.importorskip("transformers.models.roberta.modeling_roberta")
    config = roberta.RobertaConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=4, num_attention_heads=HEADS, intermediate_size=4 * DIM,
        max_position_embeddings=42, layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=PAD,
    )  # fmt: skip
    theirs = randomize(roberta.RobertaModel(config)).eval()
    ours = encoder(window=(24, 24), zero_value=True).eval()
    unused = load_roberta(ours, theirs.state_dict())
    assert all(name.startswith("pooler.") for name in unused)
    ids, valid, _ = tokens()
    expected = theirs(ids, attention_mask=valid.long()).last_hidden_state
    assert_close(ours(ids, valid)[valid], expected[valid], op="transformers")


def test_load_roberta_refuses_what_does_not_fit():
    model = encoder().double()
    before = copy.deepcopy(model.state_dict())
    state = roberta_state()
    missing = "roberta.encoder.layer.2.output.dense.bias"
    for bad, text in (
        ({}, "state_dict has no embeddings.word_embeddings.weight"),
        ({k: v for k, v in state.items() if k != missing}, f"state_dict has no {missing}"),
        (roberta_state(num_layers=5), "encoder has 4 layers"),
        (roberta_state(dim=8), r"words.weight would get shape \(30, 8\), expected \(30, 16\)"),
    ):
        with pytest.raises(ValueError, match=text):
            load_roberta(model, bad)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_position_copies():
    table = torch.arange(6.0).view(3, 2)
    assert position_copies(table, 7)[:, 0].tolist() == [0, 2, 4, 0, 2, 4, 0]
    assert position_copies(table, 2)[:, 0].tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"position_copies: weight has shape \(0, 2\)"):
        position_copies(table[:0], 2)


def test_encoder():
    model = encoder().eval()
    kinds = [type(layer.attention) for layer in model.layers]
    assert kinds == [SlidingWindowAttention] * 3 + [PoolingAttention]
    ids, valid, index = tokens()
    out = model(ids, valid, index)
    assert out.shape == (2, 24, DIM)
    longer = model(F.pad(ids, (0, 6), value=PAD), F.pad(valid, (0, 6), value=False), index)
    assert_close(longer[:, :24][valid], out[valid])
    # Padding before the text: the positions are those of the text alone; one-level layers see the same.
    one_level = encoder(two_level=[]).eval()
    shifted = one_level(F.pad(ids, (3, 0), value=PAD), F.pad(valid, (3, 0), value=False))
    assert_close(shifted[:, 3:][valid], one_level(ids, valid)[valid])


def test_checkpointed_gradients_are_the_same():
    model = encoder(dropout=0.2)
    ids, valid, index = tokens()
    results = []
    for model.checkpoint in (False, True):
        torch.manual_seed(3)
        loss = model(ids, valid, index)[valid].square().mul(torch.arange(DIM)).sum()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_question_answering():
    model = PoolingformerForQuestionAnswering(encoder(), dropout=0.0)
    ids, valid, index = tokens()
    passage = (torch.arange(24) // 8 - 1).repeat(2, 1)  # the first 8 tokens are the question
    out = model(ids, valid, index, passage=passage, num_passages=3)
    assert out.start.shape == out.end.shape == (2, 24)
    assert torch.equal(out.start == -torch.inf, ~valid)
    assert torch.equal(out.end == -torch.inf, ~valid)
    assert (out.passage == -torch.inf).tolist() == [[False, False, False, True]] * 2
    hidden = model.encoder(ids, valid, index)
    means = [hidden[1, :1], hidden[1, 8:16].mean(0, keepdim=True), hidden[1, 16:19].mean(0, keepdim=True)]
    expected = model.passage_score(torch.tanh(model.passage(torch.cat(means)))).squeeze(-1)
    assert_close(out.passage[1, :3], expected)
    loss = sum(F.cross_entropy(t, torch.tensor([1, 2])) for t in out)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model(ids).passage is None
    with pytest.raises(ValueError, match="passage is given without num_passages"):
        model(ids, passage=passage)
    with pytest.raises(ValueError, match=r"passage is torch.int32 of shape \(2, 24\), expected torch.int64"):
        model(ids, passage=passage.int(), num_passages=3)


def test_sequence_classification():
    model = PoolingformerForSequenceClassification(encoder(), 5).eval()
    ids, valid, index = tokens()
    out = model(ids, valid, index)
    assert out.shape == (2, 5)
    first = model.encoder(ids, valid, index)[:, 0]
    assert_close(out, model.score(torch.tanh(model.dense(first))))


def test_masked_lm():
    model = PoolingformerForMaskedLM(encoder())
    ids, valid, index = tokens()
    out = model(ids, valid, index)
    assert out.shape == (2, 24, VOCAB)
    at = torch.rand(2, 24) < 0.3
    assert_close(model(ids, valid, index, at=at), out[at])
    assert sum(p.numel() == VOCAB * DIM for p in model.parameters()) == 1  # tied
    with pytest.raises(ValueError, match=r"at is torch\.int64"):
        model(ids, at=at.long())


def test_summarization_learns_and_generates():
    torch.manual_seed(0)
    model = PoolingformerForSummarization(encoder(), num_layers=2, max_length=8, dropout=0.0)
    ids, valid, index = tokens()
    summary = torch.tensor([[5, 6, 7, 3], [8, 9, 3, PAD]])
    inputs = torch.cat([torch.full((2, 1), 2), summary[:, :-1]], 1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        logits = model(ids, inputs, valid, index)
        assert logits.shape == (2, 4, VOCAB)
        loss = F.cross_entropy(logits.flatten(0, 1), summary.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert losses[-1] < 0.3 * losses[0]
    model.eval()
    generated = model.generate(ids, start=2, end=3, key_valid=valid, global_index=index)
    assert generated.tolist() == [[5, 6, 7, 3], [8, 9, 3, 3]]
    assert model.generate(ids, start=2, end=3, max_length=2, key_valid=valid).shape == (2, 2)
    with pytest.raises(ValueError, match=r"max_length is 9, expected a number in \[1, 8\]"):
        model.generate(ids, start=2, end=3, max_length=9)
    with pytest.raises(ValueError, match=r"decoder_input_ids has shape \(1, 4\), expected \(2, T\)"):
        model(ids, inputs[:1])


def test_the_decoder_looks_at_no_later_token_and_at_no_padding():
    model = PoolingformerForSummarization(encoder(), num_layers=2, max_length=8).eval()
    ids, valid, index = tokens()
    summary = torch.randint(2, VOCAB, (2, 6))
    out = model(ids, summary, valid, index)
    changed = summary.clone()
    changed[:, 4:] = 3
    assert_close(model(ids, changed, valid, index)[:, :4], out[:, :4])
    source = model.encoder(ids, valid, index)
    noisy = torch.where(valid[..., None], source, 7.0)
    assert_close(model.decode(noisy, summary, valid), out)


def test_state_dict_round_trip():
    model = PoolingformerForQuestionAnswering(encoder(per_head=True)).eval()
    other = PoolingformerForQuestionAnswering(encoder(per_head=True)).eval()
    ids, valid, index = tokens()
    assert not torch.equal(other(ids, valid, index).start, model(ids, valid, index).start)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ids, valid, index).start, model(ids, valid, index).start)


BAD = [
    (lambda: encoder(two_level=[4]), r"two_level is \(4,\), expected layers in \[0, 4\)"),
    (lambda: encoder(padding_idx=30), "padding_idx is 30"),
    (lambda: encoder()(torch.zeros(1, 65, dtype=torch.int64)), r"input_ids has shape \(1, 65\)"),
    (lambda: encoder()(tokens()[0], tokens()[1].long()), "key_valid is torch.int64"),
    (lambda: PoolingformerForSequenceClassification(encoder(), 0), "num_labels is 0"),
    (lambda: PoolingformerForSummarization(encoder(), heads=3), "PoolingformerForSummarization: heads is 3"),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_arguments(call, text):
    with pytest.raises(ValueError, match=text):
        call()
