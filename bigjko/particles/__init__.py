"""Particles: the neurons themselves, by gradient descent or its flow."""

from .descent import GradientDescent as GradientDescent
from .descent import velocity as velocity
from .flow import GradientFlow as GradientFlow
from .implicit import ImplicitGradientDescent as ImplicitGradientDescent
from .sliding import SlidingFlow as SlidingFlow
