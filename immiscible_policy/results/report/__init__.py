"""A report of any set of runs: one HTML file that needs nothing else.

    gather   what the run directories say, what is missing in them, and the comparisons
    words    the verdict in plain sentences, and how numbers are written
    figures  curves, bars and intervals as inline SVG
    rollouts the same starts, all runs side by side, as small videos
    sections what stands on each tab
    options  the words of the command line
    page     one file: page.html, page.css and page.js (beside this one) with the sections in them

Every statistic comes from `evaluation.statistics`, `summary` and `compare`; nothing is computed here a second time.
"""
