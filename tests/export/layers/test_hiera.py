"""The four published trunks against an independent implementation (transformers), and their folds."""

import pytest

torch = pytest.importorskip("torch")
sam2 = pytest.importorskip("transformers.models.sam2.modeling_sam2")
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig

from export.layers.hiera import PUBLISHED_TRUNKS, Hiera
from export.stages.hiera import folded_blocks

SIDE = 128
NAMES = {
    "patch_embed.proj": "patch_embed.projection",
    ".norm": ".layer_norm",
    "mlp.layers.0": "mlp.proj_in",
    "mlp.layers.1": "mlp.proj_out",
}


def theirs(config, weights):
    """The same trunk in transformers, with our weights."""
    model = sam2.Sam2HieraDetModel(
        Sam2HieraDetConfig(
            hidden_size=config.width,
            num_attention_heads=config.heads,
            blocks_per_stage=list(config.blocks),
            embed_dim_per_stage=list(config.widths),
            num_attention_heads_per_stage=[config.heads << i for i in range(4)],
            window_size_per_stage=list(config.windows),
            global_attention_blocks=list(config.global_blocks),
            window_positional_embedding_background_size=[config.positions] * 2,
            image_size=[SIDE, SIDE],
        )
    )
    renamed = {}
    for name, value in weights.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        renamed[name] = value
    model.load_state_dict(renamed)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("config", PUBLISHED_TRUNKS.values(), ids=PUBLISHED_TRUNKS)
@torch.no_grad()
def test_trunk(config):
    torch.manual_seed(0)
    trunk = Hiera(config).eval()
    trunk.pos_embed.normal_(), trunk.pos_embed_window.normal_()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    expected = theirs(config, trunk.state_dict())(pixels).intermediate_hidden_states
    x = trunk.start(pixels)
    for stage, maps in enumerate(expected):
        fused, x = folded_blocks(trunk, stage)(x), trunk.run(stage, x)
        for ours in (x, fused):
            assert ((ours - maps).norm() / maps.norm()).item() < 2e-6
