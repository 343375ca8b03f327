"""`python -m normjax` lists every method: paper, state, context, folding and scale invariance."""

import rich.console
import rich.table

import normjax
from normjax._method import methods

_COLUMNS = ("method", "paper", "state", "context", "folds", "invariance")


def table() -> rich.table.Table:
    """The methods of the library as a table, one section a family."""
    # Folded, not cut: on a narrow terminal a name that ends in an ellipsis is no name.
    columns = [rich.table.Column(name, overflow="fold", no_wrap=name == "method") for name in _COLUMNS]
    result = rich.table.Table(*columns, title="normjax: every method", caption=_CAPTION, title_justify="left")
    family = None
    for name, m in methods(vars(normjax)).items():
        if m.family != family:
            family = m.family
            result.add_section()
            result.add_row(f"[bold]{family}[/bold]")
        paper = m.paper if m.arxiv is None else f"{m.paper} ({m.arxiv})"
        state = ", ".join(f"{s}*" if s in m.written_by_backward else s for s in (*m.state, *m.written_by_backward))
        result.add_row(name, paper, state, ", ".join(m.context), m.folds, m.scale_invariance)
    return result


_CAPTION = (
    "state: (..) only with some settings, * written by the backward pass. folds: what a neighbouring linear layer "
    "absorbs in evaluation. invariance: which factors on its features leave the output unchanged."
)


if __name__ == "__main__":
    rich.console.Console().print(table())
