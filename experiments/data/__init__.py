"""Images, labels and text as arrays, from one code path for embedded and downloadable datasets."""

from experiments.data.loading import EMBEDDED as EMBEDDED
from experiments.data.loading import Images as Images
from experiments.data.loading import default_data_dir as default_data_dir
from experiments.data.loading import load as load
from experiments.data.loading import require_available as require_available
from experiments.data.text import Text as Text
from experiments.data.text import batches as batches
from experiments.data.text import load_text as load_text

__all__ = [
    "EMBEDDED",
    "Images",
    "Text",
    "batches",
    "default_data_dir",
    "load",
    "load_text",
    "require_available",
]
