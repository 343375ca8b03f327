"""`python -m experiments NAME --flags` runs an experiment; `--help` after the name lists its flags."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tyro

from experiments import (
    UsageError,
    accuracy,
    atari,
    continual_batchnorm,
    image_classification,
    inference_cost,
    language_model,
    memorisation,
    minatar,
    overhead,
    plasticity,
    signal_propagation,
    speed,
    throughput,
    twin,
)


class Experiment(NamedTuple):
    """A frozen dataclass of settings and the function that runs them."""

    config: type[Any]
    run: Callable[[Any], Any]


EXPERIMENTS: Mapping[str, Experiment] = {
    "plasticity": Experiment(plasticity.Config, plasticity.run),
    "memorisation": Experiment(memorisation.Config, memorisation.run),
    "minatar": Experiment(minatar.Config, minatar.run),
    "atari": Experiment(atari.Config, atari.run),
    "continual_batchnorm": Experiment(continual_batchnorm.Config, continual_batchnorm.run),
    "accuracy": Experiment(accuracy.Accuracy, accuracy.main),
    "overhead": Experiment(overhead.Config, overhead.run),
    "signal_propagation": Experiment(signal_propagation.Config, signal_propagation.run),
    "inference_cost": Experiment(inference_cost.Config, inference_cost.run),
    "speed": Experiment(speed.Config, speed.main),
    "throughput": Experiment(throughput.Config, throughput.run),
    "twin": Experiment(twin.Config, twin.run),
    "language_model": Experiment(language_model.Config, language_model.run),
    "image_classification": Experiment(image_classification.Config, image_classification.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment named by the first argument; returns the exit status."""
    name, *flags = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m experiments NAME --flags\n\nexperiments: {', '.join(EXPERIMENTS)}")
        return 0
    try:
        if name not in EXPERIMENTS:
            raise UsageError(f"Unknown experiment {name!r}; there are: {', '.join(EXPERIMENTS)}.")
        experiment = EXPERIMENTS[name]
        experiment.run(tyro.cli(experiment.config, prog=f"python -m experiments {name}", args=flags))
    except (UsageError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; continue with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
