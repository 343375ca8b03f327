"""Measures kernels without an accelerator: compiles for one that need not be there and reads the program."""

from pallas_kernels.analysis.chips import CHIPS as CHIPS
from pallas_kernels.analysis.core import analyse as analyse
from pallas_kernels.analysis.core import available as available
from pallas_kernels.analysis.report import OpReport as OpReport
from pallas_kernels.analysis.report import Report as Report
