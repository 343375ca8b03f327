r"""Settings of norm and addition, whose mathematics is that of the row norms.

Forward $h = r + N(x)\,w_1$ and, where the stream's norm follows, $y = N(h)\,w_2$. Backward the stream's gradient is
$\bar h = \mathrm{d}h + N'(h)^\top(w_2\,\mathrm{d}y)$; it is that of $r$, and $\mathrm{d}x = N'(x)^\top(w_1\,\bar h)$.
"""

import dataclasses

from pallas_kernels.row_norm.formula import Kind, RowNorm


@dataclasses.dataclass(frozen=True)
class NormAdd:
    """Static settings.

    Attributes:
      kind: Which norm, twice.
      axes: Sorted adjacent axes that form a row.
      epsilon: Under the roots.
      scale_offset: Added to the scales; 1 for scales that are stored around zero.
      twice: Whether the stream is normalized too, as a second output.
      feature_names: Mesh axes that split the rows themselves; XLA only.
      interpret: Whether kernels run in Pallas's interpreter; a TPU kernel takes `pltpu.InterpretParams` too.
    """

    kind: Kind
    axes: tuple[int, ...]
    epsilon: float
    scale_offset: float = 0.0
    twice: bool = False
    feature_names: tuple[str, ...] = ()
    interpret: object = False

    @property
    def row(self) -> RowNorm:
        """The settings of either norm alone."""
        return RowNorm(
            self.kind,
            self.axes,
            self.epsilon,
            self.scale_offset,
            feature_names=self.feature_names,
            interpret=self.interpret,
        )
