"""Compare two runs, paired by start and seed: `python compare_policies.py a=runs/vanilla b=runs/knn`."""

from immiscible_policy.commands.compare_policies import main

if __name__ == "__main__":
    main()
