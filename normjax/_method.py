"""What a method is, stated once beside its factory and read by the printed table and by the tests."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast, get_args

Family = Literal["batch", "token", "vision", "conditional", "pointwise", "weight"]
Folding = Literal["all", "affine", "none"]
Invariance = Literal["per unit", "per group", "joint", "none"]

_Factory = TypeVar("_Factory", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Method:
    """The facts about a method that its equations imply and that other parts of the library act upon.

    Attributes:
      title: Its name in the paper.
      paper: Authors and year.
      arxiv: Identifier of the paper, or `None` where there is none.
      family: Over what it normalizes, or what it is.
      state: Names of the entries of its state, those of optional settings in brackets.
      written_by_backward: Those whose new value comes out of the backward pass.
      context: Names of the context arguments that it reads.
      folds: What a neighbouring linear layer can absorb in evaluation: `"all"` (evaluation is one affine map per
        feature), `"affine"` (its scale and bias only) or `"none"`.
      scale_invariance: Which factors on the features before it leave its output in training unchanged, up to epsilon:
        one for each feature (`"per unit"`), one for each group of features, one for all (`"joint"`), or none. Weights
        that produce those features are scale-invariant at that granularity.
    """

    title: str
    paper: str
    arxiv: str | None
    family: Family
    state: tuple[str, ...] = ()
    written_by_backward: tuple[str, ...] = ()
    context: tuple[str, ...] = ()
    folds: Folding = "none"
    scale_invariance: Invariance = "none"

    def __post_init__(self):
        """Rejects words that no reader of the metadata would understand."""
        for name, allowed in (("family", Family), ("folds", Folding), ("scale_invariance", Invariance)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; expected one of {get_args(allowed)}.")


@dataclasses.dataclass(frozen=True)
class Made:
    """What made a transform: a transform itself is two opaque functions, and folding has to know its epsilon.

    Attributes:
      factory: The factory, whose attribute `method` says what it makes.
      given: The arguments that it was called with, by name.
    """

    factory: Callable[..., Any]
    given: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The factory's public name."""
        return self.factory.__name__

    @property
    def method(self) -> Method:
        """The facts about the method."""
        return self.factory.__dict__["method"]

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of an argument: as given, else the factory's default, else `default`."""
        declared = inspect.signature(self.factory).parameters.get(name)
        own = default if declared is None or declared.default is inspect.Parameter.empty else declared.default
        return self.given.get(name, own)

    def again(self, **changes: Any) -> Any:
        """Calls the factory once more, some arguments changed."""
        return self.factory(**{**self.given, **changes})


def made(transform: Any) -> Made | None:
    """Returns what made a transform, or `None` for a composition and for one that was written by hand."""
    return getattr(transform.apply, "made", None)


def method(title: str, paper: str, arxiv: str | None, family: Family, **facts: Any) -> Callable[[_Factory], _Factory]:
    """Returns a decorator that attaches a `Method` to a factory as its attribute `method`.

    The transforms that the factory makes remember it (`made`).
    """
    described = Method(title, paper, arxiv, family, **facts)

    def attach(factory: _Factory) -> _Factory:
        signature = inspect.signature(factory)

        @functools.wraps(factory)
        def remembered(*args: Any, **kwargs: Any) -> Any:
            transform = factory(*args, **kwargs)
            given = dict(signature.bind(*args, **kwargs).arguments)
            rest = [
                n for n, p in signature.parameters.items() if p.kind is inspect.Parameter.VAR_KEYWORD and n in given
            ]
            for name in rest:
                given |= given.pop(name)
            if hasattr(transform, "apply"):
                transform.apply.__dict__["made"] = Made(remembered, given)
            return transform

        remembered.__dict__["method"] = described
        return cast(_Factory, remembered)

    return attach


def methods(namespace: Mapping[str, Any]) -> dict[str, Method]:
    """Returns the described factories of a module's namespace by name, family by family."""
    found = {name: value.method for name, value in namespace.items() if isinstance(_attached(value), Method)}
    order = get_args(Family)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[1].family), item[0])))


def _attached(value: Any) -> Any:
    return getattr(value, "__dict__", {}).get("method") if callable(value) else None
