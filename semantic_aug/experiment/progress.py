"""Progress bars."""

import sys


def progress_bar(**options):
    """A tqdm bar; where stderr is a log file, a line every half minute instead of ten a second."""
    from tqdm import tqdm

    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 30, **options)
