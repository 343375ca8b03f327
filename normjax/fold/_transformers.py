"""What becomes of each norm of the library's transformers: an edge of a plan, or a refusal with its reason."""

from collections.abc import Iterator

from normjax.fold import _sites
from normjax.fold.plan import Edge, Layer, Refusal
from normjax.models import MLP, Encoder, LanguageModel, Transformer, ViT
from normjax.models.transformer import Block, TransformerConfig

Model = LanguageModel | Encoder | ViT | Transformer
_ADDED = "its output is added to another stream, not read by a linear layer."


def stack_of(model: Model) -> Transformer:
    """The blocks of a model, which may be them alone."""
    return model if isinstance(model, Transformer) else model.stack


def found(model: Model, untie: bool) -> Iterator[Edge | Refusal]:
    """Every norm of a transformer, in the order in which they are folded."""
    stack, prefix = stack_of(model), "" if isinstance(model, Transformer) else "stack/"
    if stack.embedding_norm is not None:
        yield Refusal(f"{prefix}embedding_norm", "its output is the residual stream itself, which norms and sums read.")
    for index, (block, scanned) in enumerate(zip(stack.blocks, stack._lengths(), strict=True)):
        yield from _of_block(block, f"{prefix}blocks/{index}", stack.config, 1 if scanned else 0)
    if stack.final_norm is not None:
        yield _final(model, stack, f"{prefix}final_norm", untie)
    if stack.second_norm is not None:
        yield Refusal(f"{prefix}second_norm", _ADDED)
    if isinstance(model, Encoder) and model.head is not None:
        yield Refusal(
            "head/norm", "the embedding's transpose reads it, which the fold would change for the tokens too."
        )


def _final(model: Model, stack: Transformer, path: str, untie: bool) -> Edge | Refusal:
    if stack.config.placement.streams != "one":
        return Refusal(path, _ADDED)
    if isinstance(model, Transformer | Encoder):
        kind = "stack" if isinstance(model, Transformer) else "encoder"
        return Refusal(path, f"its output is the {kind}'s: who reads it is not known.")
    if model.head is None and not untie:
        return Refusal(
            path,
            "the head is the embedding's transpose, which the fold would change; untie=True makes a head of its own.",
        )
    assert stack.final_norm is not None
    return _sites.before(stack.final_norm, path, (Layer("head"),))


def _of_block(block: Block, path: str, config: TransformerConfig, stacked: int) -> Iterator[Edge | Refusal]:
    gated = isinstance(block.ffn.branch, MLP) and block.ffn.branch.gate is not None
    readers = {
        "attention": tuple(Layer(f"{path}/attention/branch/{name}") for name in ("query", "key", "value")),
        "ffn": tuple(Layer(f"{path}/ffn/branch/{name}") for name in (("gate", "up") if gated else ("up",))),
    }
    for name in ("attention", "ffn"):
        residual, here = getattr(block, name), f"{path}/{name}"
        last = Layer(f"{here}/branch/{'out' if name == 'attention' else 'down'}")
        layers = readers[name]
        if block.parallel and name == "attention":
            layers = (*layers, *readers["ffn"])
        yield from _sites.around(residual, here, layers, last, block.streams, stacked)
        if name == "attention":
            yield from _sites.inside_attention(residual.branch, f"{here}/branch", last, stacked)
        if residual.branch.inner_norm is not None:
            yield _sites.before(residual.branch.inner_norm, f"{here}/branch/inner_norm", (last,), stacked)
