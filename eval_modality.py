"""Which way round do policies turn the T from symmetric starts: `python eval_modality.py runs=runs/modality`."""

from immiscible_policy.commands.eval_modality import main

if __name__ == "__main__":
    main()
