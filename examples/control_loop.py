"""A control loop at a fixed rate: the next chunk is computed in another thread while this one is executed.

python examples/control_loop.py runs/mine 10 100     # a run, the rate in Hz, and the number of steps

    step       0   1  ...  6   7 | 8   9  ...       8 of 15 actions are executed, a chunk takes up to 2 steps (`lead`)
    chunk 1    #   #  ...  #   # |
    chunk 2                o   . | #   #  ...       from the observation of step 6, so it begins with its third action
"""

import math
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from immiscible_policy import load_policy


class Robot:
    """Put yours here: this one sees zeros, black in its cameras, and stays where it is."""

    def __init__(self, policy):
        blank, widths = policy.inputs.blank(1), policy.inputs.widths
        seen = {name: frames[0] for name, frames in blank.frames.items()}
        self.seen = seen | {name: np.zeros(width) for name, width in widths.items()} if seen else blank.numbers[0]

    def observe(self):
        """What the policy was trained on: a dictionary of arrays, or the numbers alone."""
        return self.seen

    def send(self, action):
        """Execute an action (A,)."""


def control(policy, robot, hz: float, steps: int) -> None:
    """Send an action in each of so many steps, and print how many deadlines were missed."""
    lead = min(math.ceil(policy.benchmark().p95 * hz), policy.action_steps)
    history = deque([robot.observe()], maxlen=policy.obs_steps)
    chunk, begun, following, stale, late = policy.chunk(history), 0, None, 0, 0
    with ThreadPoolExecutor(1) as worker:
        start = time.perf_counter()
        for step in range(steps):
            history.append(robot.observe())
            if following is None and step - begun >= policy.action_steps - lead:
                following, observed = worker.submit(policy.chunk, list(history)), step
            if following and following.done() and step - begun >= policy.action_steps:
                chunk, begun, following = following.result(), observed, None
            stale += step - begun >= len(chunk)  # no new chunk in time: the last action is repeated
            robot.send(chunk[min(step - begun, len(chunk) - 1)])
            rest = start + (step + 1) / hz - time.perf_counter()
            late += rest < 0
            time.sleep(max(rest, 0))
    print(f"{steps} steps at {hz:g} Hz: {late} ended late, {stale} repeated an action while waiting for a chunk")


if __name__ == "__main__":
    trained = load_policy(sys.argv[1])
    control(trained, Robot(trained), hz=float(sys.argv[2]), steps=int(sys.argv[3]))
