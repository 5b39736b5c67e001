"""Imported by the server that forks worker processes, and by it alone: it leaves signals to the workers.

Slurm, supervisors and terminals signal whole process groups. A server that ended at once would take its workers with it
before they have left their checkpoints; it ends when the process that started it and all workers have ended. Workers
inherit that a hangup is ignored: the process that they train for passes it on, unless it ignores it too.
"""

import signal

for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
