"""Named shapes of quantized norms: those of the row norms."""

from pallas_kernels.row_norm.shapes import SHAPES as SHAPES
from pallas_kernels.row_norm.shapes import SMALL as SMALL
from pallas_kernels.row_norm.shapes import Shape as Shape
