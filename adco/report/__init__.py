"""See a run: python3 -m adco.report RUN writes RUN/report.html, one page that needs nothing else.

runs: what is on disk.  embedded: its pictures through its encoder.  bank: the adversaries, in pure
functions.  diagnosis: what is wrong.  one, compare: pages.  page: curves, thumbnails, page.html.
"""

from adco.report.runs import newest_run, read_metrics

__all__ = ["newest_run", "read_metrics"]
