import pytest


@pytest.fixture(scope="module", autouse=True)
def plain_sprites():
    """The sprite atlas needs a font that test machines may lack."""
    from export.nano import sprites
    from helpers.placeholder_sprites import placeholder_sprites

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sprites, "load", placeholder_sprites)
        yield
