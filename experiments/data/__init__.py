"""Images and labels as arrays, from one code path for embedded and downloadable datasets."""

from experiments.data.loading import EMBEDDED as EMBEDDED
from experiments.data.loading import Images as Images
from experiments.data.loading import default_data_dir as default_data_dir
from experiments.data.loading import load as load
from experiments.data.loading import require_available as require_available

__all__ = ["EMBEDDED", "Images", "default_data_dir", "load", "require_available"]
