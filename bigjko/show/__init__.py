"""What a flow looks like: pictures, and progress while it runs."""

from .page import page as page
from .plots import plot_comparison as plot_comparison
from .plots import plot_flows as plot_flows
from .progress import Bars as Bars
