"""Encoders of texts: padding changes nothing, directions start where the text does, what goes wrong is told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtl_lightning.architectures.parts import copies
from mtl_lightning.encoders import BagOfWords, SmallCNN, TextAttention, TextEncoder, TextGRU, TextTransformer
from mtl_lightning.errors import ConfigError
from mtl_lightning.features import Features
from mtl_lightning.heads import MLP, AttentionPooling, Linear

SMALL = {"vocabulary": 20, "width": 8}
ENCODERS = {
    "bag": lambda: BagOfWords(**SMALL, hidden=[6, 5]),
    "gru": lambda: TextGRU(**SMALL, hidden=5, layers=2),
    "gru-one-way": lambda: TextGRU(**SMALL, hidden=5, bidirectional=False),
    "attention": lambda: TextAttention(**SMALL, layers=2, heads=2, positions=True, max_length=12),
    "transformer": lambda: TextTransformer(**SMALL, heads=2, max_length=12),
}
WORDS = [[3, 4, 5, 6, 7], [8, 9], [2], [10, 11, 12, 3, 4, 5, 6, 7, 8]]


def build(name: str) -> TextEncoder:
    torch.manual_seed(0)
    return ENCODERS[name]().double().eval()


def batch(texts: list[list[int]], longer: int = 0) -> Tensor:
    length = max(map(len, texts)) + longer
    return torch.tensor([text + [0] * (length - len(text)) for text in texts])


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_changes_no_result(name: str) -> None:
    encoder = build(name)
    heads = [
        head(encoder.specs, 3, **options).double().eval()
        for head, options in ((Linear, {}), (Linear, {"pool": 2}), (MLP, {"hidden": [4]}), (AttentionPooling, {"queries": 2}))
    ]
    together = encoder(Features(batch(WORDS, longer=3)))
    for row, text in enumerate(WORDS):
        alone = encoder(Features(batch([text])))
        for spec, level, single in zip(encoder.specs, together, alone, strict=True):
            assert single.tensor.shape == (1, spec.channels, 1, len(text)) and spec.stride == 1
            torch.testing.assert_close(level.tensor[row, ..., : len(text)], single.tensor[0])
            assert not level.tensor[row, ..., len(text) :].any()
            assert level.valid is not None and int(level.valid[row].sum()) == len(text)
        for head in heads[:1] + heads[2:]:  # regions of a text shorter than there are regions overlap
            torch.testing.assert_close(head(together, (1, 12))[row], head(alone, (1, len(text)))[0])
        if len(text) > 1:
            pooled = heads[1]([Features(alone[-1].tensor.expand(-1, -1, 2, -1), alone[-1].valid.expand(-1, -1, 2, -1))], (1, 1))
            assert torch.isfinite(pooled).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_other_lengths_beside_a_text_change_no_gradient(name: str) -> None:
    encoder, seen = build(name), []
    for ids in (batch(WORDS[:1]), batch(WORDS[:1], longer=4)):
        encoder.zero_grad()
        last = encoder(Features(ids))[-1]
        (last.tensor.square().sum()).backward()
        seen.append({key: p.grad.clone() for key, p in encoder.named_parameters() if p.grad is not None})
    for key, grad in seen[0].items():
        torch.testing.assert_close(grad, seen[1][key], msg=key)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_row_of_padding_alone_is_no_nan(name: str) -> None:
    """Of several inputs a row may lack the text."""
    encoder = build(name).train()
    last = encoder(Features(batch([*WORDS, []])))[-1]
    assert torch.isfinite(last.tensor).all() and not last.tensor[-1].any()
    last.tensor.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)
    with torch.no_grad():  # torch takes another way through a transformer then
        assert torch.isfinite(encoder.eval()(Features(batch([*WORDS, []])))[-1].tensor).all()


def test_a_gru_of_two_directions_is_torchs_on_packed_sequences() -> None:
    stage = build("gru").stages[1]
    both = nn.GRU(8, 5, batch_first=True, bidirectional=True).double()
    for key, value in stage.body.state_dict().items():
        both.state_dict()[key].copy_(value)
        both.state_dict()[f"{key}_reverse"].copy_(stage.backward_body.state_dict()[key])
    words = torch.randn(4, 9, 8, dtype=torch.float64)
    valid = (batch(WORDS) != 0).double()[:, None, None]
    packed = nn.utils.rnn.pack_padded_sequence(words, [len(text) for text in WORDS], batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(both(packed)[0], batch_first=True)
    found = stage(Features(words.transpose(1, 2).unsqueeze(2), valid)).tensor.squeeze(2).transpose(1, 2)
    torch.testing.assert_close(found, expected)


def test_the_order_of_words_matters_to_some() -> None:
    for name, expected in {"bag": False, "gru-one-way": True, "transformer": True, "attention": True}.items():
        encoder, head = build(name), Linear([build(name).specs[-1]], 2).double()
        first, second = (head(encoder(Features(torch.tensor([text]))), (1, 3)) for text in ([3, 4, 5], [5, 4, 3]))
        assert torch.allclose(first, second) is not expected, name


def test_copies_of_random_encoders_differ(tmp_path: Path) -> None:
    encoder = ENCODERS["gru"]()
    assert encoder.fresh
    one, two = copies(encoder, 2, encoder.fresh)
    assert not torch.equal(one.stages[1].body.weight_hh_l0, two.stages[1].body.weight_hh_l0)
    torch.save(encoder.state_dict(), tmp_path / "weights.pth")
    loaded = TextGRU(**SMALL, hidden=5, layers=2, weights=str(tmp_path / "weights.pth"))
    assert not loaded.fresh and torch.equal(loaded.stages[2].body.weight_ih_l0, encoder.stages[2].body.weight_ih_l0)
    with pytest.raises(ConfigError, match=r"model.encoder.init_args.weights.*stages.0.body.weight \(20, 8\) for \(21, 8\)"):
        TextGRU(21, 8, hidden=5, layers=2, weights=str(tmp_path / "weights.pth"))
    part = TextGRU(**SMALL, hidden=5, layers=2, stages=2, weights=str(tmp_path / "weights.pth"))
    assert len(part.specs) == 2


def test_wrong_input_is_told() -> None:
    encoder = ENCODERS["transformer"]()
    with pytest.raises(ConfigError, match=r"vocabulary is 20, the data gives the id 20; .*tokenizer"):
        encoder(Features(torch.tensor([[3, 20]])))
    with pytest.raises(ConfigError, match="the data gives the id -1"):
        encoder(Features(torch.tensor([[3, -1]])))
    with pytest.raises(ConfigError, match="max_length is 12, the data gives texts of 13 words"):
        encoder(Features(torch.ones(1, 13, dtype=torch.long)))
    with pytest.raises(ConfigError, match=r"TextTransformer reads texts .* take an encoder of pictures"):
        encoder(Features(torch.rand(1, 3, 8, 8)))
    with pytest.raises(ConfigError, match="SmallCNN reads pictures, the data gives texts; take a text encoder"):
        SmallCNN([4])(Features(torch.tensor([[3, 4]])))
    for build_wrong, message in (
        (lambda: TextTransformer(width=10, heads=4), "heads is 4, expected a divisor of .*width, 10"),
        (lambda: TextAttention(width=10, heads=4), "heads is 4, expected a divisor of .*width, 10"),
        (lambda: TextGRU(layers=0), "layers is 0, expected 1 or more"),
        (lambda: BagOfWords(hidden=[4, 0]), "hidden is 0, expected 1 or more"),
        (lambda: BagOfWords(dropout=1.0), r"dropout is 1.0, expected a share in \[0, 1\)"),
        (lambda: BagOfWords(stages=3), "stages is 3, expected 1 to 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_wrong()


@pytest.mark.parametrize("name", ENCODERS)
def test_export(name: str) -> None:
    """For any number of words, or for a fixed one, filled up, where torch unrolls the recurrence."""
    encoder = build(name).float()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, text: Tensor) -> Tensor:
            return self.encoder(Features(text))[-1].tensor

    fixed, texts = "gru" in name, [[3, 4, 5], [6, 7], [2], [2, 3]]
    # Older ones lay bounds on the number of words that hold for any of them.
    fixed_now = fixed or (name in ("attention", "transformer") and torch.__version__ < (2, 14))
    shapes = {} if fixed_now else {1: torch.export.Dim("words", min=2, max=12)}
    with torch.no_grad():
        program = torch.export.export(Last(), (batch(WORDS),), dynamic_shapes=(shapes,)).module()
        found, expected = program(batch(texts, longer=6 * fixed_now)), encoder(Features(batch(texts)))[-1].tensor
    torch.testing.assert_close(found[..., :3], expected)
