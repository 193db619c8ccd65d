import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("websockets")
pytest.importorskip("prometheus_client")

import runtime
from helpers.server import Running


@pytest.fixture
def serve():
    """Start servers, which end with the test."""
    running = []

    def start(engine, limits=None, **options):
        running.append(Running(engine, limits, **options))
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture(scope="session")
def text_engine(toy):
    return runtime.load(toy, max_objects=16)


@pytest.fixture(scope="session")
def click_engine(toy_sam2_bundle):
    return runtime.load(toy_sam2_bundle, max_objects=16)


@pytest.fixture(scope="session")
def concept_engine(numpy_sam3_bundle):
    from helpers import numpy_sam3

    return numpy_sam3.load(numpy_sam3_bundle)
