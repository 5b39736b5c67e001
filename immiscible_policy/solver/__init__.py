"""From noise to data: solvers over a grid of times, one recurrence for all of them."""

from immiscible_policy.solver.inversion import invert
from immiscible_policy.solver.pndm import Pndm
from immiscible_policy.solver.recurrence import Plan, Step, draws, noise_rows, solve
from immiscible_policy.solver.replay import Replay
from immiscible_policy.solver.solvers import SOLVERS, Solver
