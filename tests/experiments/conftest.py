"""One folder of prepared datasets for all tests here."""

import jax
import pytest
from threadpoolctl import threadpool_limits


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


@pytest.fixture(autouse=True, scope="session")
def _one_blas_thread():
    """As the experiment itself does: OpenBLAS threads that compete with XLA's make small decompositions slow."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
