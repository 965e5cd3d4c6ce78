"""What a flow looks like: pictures, and progress while it runs."""

from .page import page as page
from .pictures import animate as animate
from .pictures import plot_measure as plot_measure
from .plots import plot_comparison as plot_comparison
from .plots import plot_flow as plot_flow
from .plots import plot_flows as plot_flows
from .progress import Bars as Bars
from .progress import JsonLog as JsonLog
