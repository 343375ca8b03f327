"""Weights back to a stored norm, with an optimizer's update added in the same pass."""

from pallas_kernels.projection.api import deferred_update as deferred_update
from pallas_kernels.projection.api import project as project
from pallas_kernels.projection.api import update_and_project as update_and_project
