"""Measure coverage of what a run keeps: `python eval_policy.py run=runs/mine`."""

from immiscible_policy.commands.eval_policy import main

if __name__ == "__main__":
    main()
