"""One folder of prepared datasets for all tests here."""

import jax
import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def _no_data_outside(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


@pytest.fixture(autouse=True, scope="session")
def _promotion():
    """optax's Adam takes a float to the power of an int32 count, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield
