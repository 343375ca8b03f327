"""From a configuration to a folder of results, resumable after every game."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

import normjax as nj
from experiments import UsageError, records, runs
from experiments.atari.arms import ARMS, learning_rate, optimizer
from experiments.atari.config import SEGMENTS, Config, Preset
from experiments.atari.games import ACTIONS, FRAME_SKIP, Games, require
from experiments.atari.network import Network
from experiments.atari.rainbow import ATOMS, Agent, Learner, make_agent
from experiments.atari.replay import Replay
from experiments.checkpoints import Checkpoints

BATCH, STEPS_PER_LEARNING, LEARNING_PER_TARGET = 32, 4, 2000
# Importance weights correct more and more of the bias of prioritized replay, as its authors have it.
FIRST_CORRECTION = 0.4


def run(config: Config, console: Console | None = None) -> Path:
    """Runs the experiment, or what is left of it, and writes its results.

    Args:
      config: What to run.
      console: Where progress and the summary go; standard output by default.

    Returns:
      The folder with `config.json`, `metrics.jsonl`, `summary.json` and `summary.md`.

    Raises:
      UsageError: If something in the configuration cannot be run, or ale-py is not installed.
    """
    console = console or runs.default_console()
    if config.resume:
        folder, config = config.resume, _stored(config)
    else:
        folder = runs.require_new(config.out / (config.run or f"atari-{datetime.now():%Y%m%d-%H%M%S}"))
    for game in config.sizes().games:
        require(game)
    if not config.resume and not (folder / "config.json").exists():
        about = {"command": runs.command(sys.argv[1:]), "environment": records.environment(), "config": config}
        records.write_json(folder / "config.json", {"experiment": "atari", **about})
    console.print(f"results go to [bold]{folder}[/bold] (if interrupted: --resume {folder})", highlight=False)
    _train(config, folder, console)
    _report(config, records.read_lines(folder / "metrics.jsonl"), folder, console)
    return folder


def _stored(config: Config) -> Config:
    restored = runs.from_json(Config, runs.read_config(config.resume or Path(), "atari")["config"])
    if config not in (Config(resume=config.resume), restored):
        raise UsageError(f"--resume {config.resume} brings its own settings; give no others beside it.")
    return restored


def _train(config: Config, folder: Path, console: Console) -> None:
    sizes, path = config.sizes(), folder / "metrics.jsonl"
    known = {(r["arm"], r["seed"], r["phase"]) for r in records.read_lines(path)}
    phases = len(sizes.games) * sizes.visits
    jobs = [(arm, seed) for arm in config.arms for seed in range(sizes.seeds)]
    columns = (
        TextColumn("{task.description:>50}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tenths of games"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress, Checkpoints(folder / "checkpoints") as checkpoints:
        bar = progress.add_task("", total=len(jobs) * phases * SEGMENTS)
        for index, (arm, seed) in enumerate(jobs):
            done = index * phases * SEGMENTS
            progress.update(bar, completed=done)
            if all((arm, seed, phase) in known for phase in range(phases)):
                continue
            for phase, segment, record in _phases(config, arm, seed, index, checkpoints):
                place = f"{ARMS[arm].label}, seed {seed}, {sizes.games[phase % len(sizes.games)]}"
                progress.update(bar, description=place, completed=done + phase * SEGMENTS + segment)
                if record is not None and (arm, seed, phase) not in known:
                    records.append_line(path, records.plain(record))


def _phases(
    config: Config, arm: str, seed: int, index: int, checkpoints: Checkpoints
) -> Iterator[tuple[int, int, dict[str, Any] | None]]:
    """Plays one job; yields the phase, its finished tenths, and at its end its record."""
    sizes, method = config.sizes(), ARMS[arm]
    steps = sizes.frames // (FRAME_SKIP * STEPS_PER_LEARNING)
    rate = learning_rate("cosine" if config.cosine else method.schedule, config.learning_rate, steps)
    transform = optimizer(method, rate, config.affine_decay)
    agent = make_agent(Network(ACTIONS, ATOMS, method.normalized), transform)
    key = jax.random.key(seed)
    params = agent.init(jax.random.fold_in(key, 0))
    first, state = checkpoints.restore(index, {"params": params, "initial": params})
    for phase in range(first, len(sizes.games) * sizes.visits):
        if method.fresh:
            params = agent.init(jax.random.fold_in(key, phase))
            state = {"params": params, "initial": params}
        # Of the initial parameters: a new optimizer must not take what the current ones have become for the norms to
        # project to and the values to pull to.
        learned = Learner(state["params"], state["params"], jax.jit(transform.init)(state["initial"]))
        game = sizes.games[phase % len(sizes.games)]
        returns: list[float] = []
        for segment, current, scores in _play(agent, learned, sizes, game, (seed, phase)):
            learned = current
            returns.append(float(np.mean(scores)) if scores else float("nan"))
            yield phase, segment, None
        growth = [float(m.growth) for m in nj.weight_motion(learned.opt_state).values()]
        effective = [float(r) for r in nj.effective_learning_rates(learned.opt_state).values()]
        measured = {"hidden_norm_ratio": np.mean(growth), "hidden_effective_lr": np.mean(effective)}
        about = {"arm": arm, "seed": seed, "phase": phase, "game": game}
        yield phase, SEGMENTS, {**about, "episode_return": returns, **measured}
        state = {"params": learned.params, "initial": state["initial"]}
        checkpoints.save(index, phase + 1, state)


def _play(
    agent: Agent, learner: Learner, sizes: Preset, game: str, numbers: tuple[int, int]
) -> Iterator[tuple[int, Learner, list[float]]]:
    """Plays and learns one game; yields after every tenth its number, the learner and the returns of its episodes."""
    rng = np.random.default_rng(numbers)
    key = jax.random.key(int(rng.integers(2**31)))
    games = Games(game, sizes.envs, int(rng.integers(2**20)))
    replay = Replay(sizes.replay // sizes.envs, sizes.envs, (84, 84))
    rounds = sizes.frames // (FRAME_SKIP * sizes.envs * SEGMENTS)
    observations, starts = games.reset(), np.ones(sizes.envs, bool)
    running, due, learned = np.zeros(sizes.envs), 0.0, 0
    for segment in range(SEGMENTS):
        finished: list[float] = []
        for turn in range(rounds):
            key, act_key = jax.random.split(key)
            actions = np.asarray(agent.act(learner.params, act_key, observations))
            after = games.step(actions)
            # Rewards are clipped to learn from, not to score by.
            replay.add(observations[..., -1], actions, np.clip(after.rewards, -1, 1), after.ends, starts)
            running += after.rewards
            finished += running[after.ends].tolist()
            running[after.ends] = 0
            observations, starts = after.observations, after.ends
            if replay.count * sizes.envs < sizes.warm_up:
                continue
            due += sizes.envs / STEPS_PER_LEARNING
            done = (segment * rounds + turn) / (SEGMENTS * rounds)
            while due >= 1:
                due, learned = due - 1, learned + 1
                sample = replay.sample(BATCH, FIRST_CORRECTION + (1 - FIRST_CORRECTION) * done, rng)
                learner, errors = agent.learn(learner, jax.random.fold_in(key, learned), sample)
                replay.update(sample.indices, np.asarray(errors))
                if learned % LEARNING_PER_TARGET == 0:
                    learner = learner._replace(target=learner.params)
        yield segment + 1, learner, finished
    games.close()


def _report(config: Config, lines: Sequence[Mapping[str, Any]], folder: Path, console: Console) -> None:
    """The return in the last tenth of each visit of each game, over seeds."""
    sizes = config.sizes()
    names = [f"{game} {visit + 1}" for visit in range(sizes.visits) for game in sizes.games]
    rows = {arm: [_last_returns(lines, arm, phase) for phase in range(len(names))] for arm in config.arms}
    records.write_json(folder / "summary.json", {"columns": names, "rows": rows})
    cells = [[ARMS[arm].label, *[_cell(values) for values in columns]] for arm, columns in rows.items()]
    title = f"Return in the last tenth of a visit, mean (lowest to highest of {sizes.seeds} seeds)"
    header, rule = ["arm", *names], ["---", *["---:"] * len(names)]
    text = ["| " + " | ".join(line) + " |" for line in [header, rule, *cells]]
    records.write_text(folder / "summary.md", "\n".join([f"# {title}", "", *text, ""]))
    table = Table(*header, title=title)
    for line in cells:
        table.add_row(*line)
    console.print(table)


def _last_returns(lines: Sequence[Mapping[str, Any]], arm: str, phase: int) -> list[float]:
    curves = [line["episode_return"] for line in lines if (line["arm"], line["phase"]) == (arm, phase)]
    return [curve[-1] for curve in curves if curve[-1] is not None]


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"
