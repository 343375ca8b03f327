"""Who writes to the residual stream of one of the library's transformers, and which linear layers read it."""

from collections.abc import Iterator

from normjax.fold.plan import Layer
from normjax.models import Encoder, LanguageModel, ViT
from normjax.models.transformer import Transformer

Model = LanguageModel | Encoder | ViT
_WRITERS = {"attention": "out", "ffn": "down"}
_READERS = {"attention": ("query", "key", "value"), "ffn": ("gate", "up")}


def check_model(model: Model) -> None:
    """Raises unless all that writes to a model's stream is known."""
    if not isinstance(model, Model):
        kind = type(model).__name__
        raise TypeError(f"expected a LanguageModel, Encoder or ViT, got {kind}: who writes to its stream is not known.")


def writers(model: Model) -> Iterator[tuple[tuple[Layer, ...], int]]:
    """What writes to the stream, with the number of axes over which it is stacked: embeddings first."""
    yield tuple(_embeddings(model)), 0
    for here, scanned in _blocks(model.stack):
        yield tuple(Layer(f"{here}/{name}/branch/{matrix}") for name, matrix in _WRITERS.items()), 1 if scanned else 0


def _embeddings(model: Model) -> Iterator[Layer]:
    if isinstance(model, ViT):
        yield Layer("patch_embedding")
        tables = ("class_token", "position_embedding")
        yield from (Layer("", kernel=name) for name in tables if getattr(model, name) is not None)
        return
    tables = ("embedding", "position_embedding", "type_embedding")
    yield from (Layer(name, kernel="embedding") for name in tables if getattr(model, name, None) is not None)


def readers(model: Model) -> Iterator[str]:
    """Kernels that read the stream behind a norm, features on the last axis but one."""
    for here, _ in _blocks(model.stack):
        yield from (f"{here}/{part}/branch/{name}/kernel" for part, names in _READERS.items() for name in names)
    yield "pooler/kernel" if isinstance(model, Encoder) else "head/kernel"


def _blocks(stack: Transformer) -> Iterator[tuple[str, int]]:
    return ((f"stack/blocks/{index}", scanned) for index, scanned in enumerate(stack._lengths()))


def obstacle(model: Model) -> str | None:
    """Why a linear map may not be moved through the stream: something else than norms reads or writes it."""
    if isinstance(model, LanguageModel) and model.head is None:
        return "its head is the embedding's transpose, which would change too; fold_model(model, untie=True) first."
    if isinstance(model, Encoder) and model.head is not None:
        return "its head for masked tokens is the embedding's transpose, which would change too; take it off."
    place, layers = model.stack.config.placement, model.stack.config.layers
    for depth in range(1, layers + 1):
        for step in (place.step("attention", depth, layers), place.step("ffn", depth, layers)):
            if step.gate is not None:
                return "a gate follows the branch and weighs single features; fold_model folds LayerScale first."
            if step.after or step.output or step.residual:
                return "a norm writes to the stream (Post-LN, Peri-LN or the like): what it writes is its own."
            if step.inner or step.qkv:
                return "the norms inside its sublayers are the same norm, of features that are not the stream."
            if not step.before and not place.parallel:
                return "a sublayer reads the stream without a norm."
    if place.embedding or not place.final or place.streams != "one":
        return "it needs a stream that starts at the embedding itself, ends in a norm and has no second one beside it."
    return None
