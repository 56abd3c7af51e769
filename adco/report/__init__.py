"""See a run: python3 -m adco.report RUN writes RUN/report.html, one page that needs nothing else.

runs: what is on disk.  embedded: its pictures through its encoder, and the adversaries among them.
diagnosis: what is wrong.  pages: what is shown.  drawing: curves, thumbnails, page.html.
"""

from adco.report.runs import newest_run, read_metrics

__all__ = ["newest_run", "read_metrics"]
