"""Text towers against those of transformers, padded and not."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from export.layers.text_towers import Bert, ClipText, TowerConfig

SIZES = {"vocabulary": 60, "positions": 16, "width": 32, "hidden": 48, "layers": 2, "heads": 4}
NAMES = {
    "vocab_size": 60,
    "max_position_embeddings": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TOKENS = torch.tensor([[3, 17, 59, 4, 9], [5, 8, 2, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def loaded(ours, theirs, prefix=""):
    """Our tower with their weights, made large enough to matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theirs.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    tensors = {prefix + k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()}
    tensors = {k: v for k, v in tensors.items() if not k.endswith(("position_ids", "token_type_ids"))}
    ours.load_state_dict(tensors)
    return ours.eval()


def check(ours, theirs):
    with torch.no_grad():
        want = theirs(TOKENS, MASK)[0]
        found = ours(TOKENS, MASK.bool())
        torch.testing.assert_close(found[MASK.bool()], want[MASK.bool()], rtol=1e-5, atol=1e-5)
        alone = ours(TOKENS[1:, :3])
        torch.testing.assert_close(alone[0], want[1, :3], rtol=1e-5, atol=1e-5)


def test_bert():
    theirs = transformers.BertModel(transformers.BertConfig(**NAMES), add_pooling_layer=False).eval()
    check(loaded(Bert(TowerConfig("bert", **SIZES)), theirs), theirs)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation):
    config = transformers.CLIPTextConfig(**NAMES, hidden_act=activation, eos_token_id=2)
    theirs = transformers.CLIPTextModel(config).eval()
    check(loaded(ClipText(TowerConfig("clip", **SIZES, activation=activation)), theirs, "text_model."), theirs)
