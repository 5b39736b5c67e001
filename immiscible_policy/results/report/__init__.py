"""A report of any set of runs: one HTML file that needs nothing else.

    evidence  what the run directories say, what is missing in them, and the comparisons
    words     the verdict in plain sentences
    charts    learning curves and differences by start, as SVG of matplotlib
    rollouts  the same starts, all runs side by side, as small videos
    options   the options of the command line
    page      all of it in `templates/report.html`, which holds the tables too and extends `base.html`

Every statistic comes from `evaluation` and `results.compare`; nothing is computed here a second time.
"""
