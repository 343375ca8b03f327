"""How fast every norm is on this machine: `python -m experiments speed`."""

from experiments.speed.run import Config as Config
from experiments.speed.run import main as main
