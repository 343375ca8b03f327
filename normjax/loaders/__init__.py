"""Hugging Face checkpoints in our models and back: one table of names for each family, nothing is ever unpickled."""

from normjax.loaders.convert import config_from_hf as config_from_hf
from normjax.loaders.convert import from_hf as from_hf
from normjax.loaders.convert import to_hf as to_hf
from normjax.loaders.files import load as load
from normjax.loaders.files import save as save
