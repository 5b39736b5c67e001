"""How clean sample and noise meet, and what the network learns from their meeting."""

from immiscible_policy.path.base import PathSample, ProbabilityPath
from immiscible_policy.path.consistency import Consistency
from immiscible_policy.path.ddpm import PREDICTIONS, Ddpm
from immiscible_policy.path.flow import Flow
from immiscible_policy.path.regression import Regression
