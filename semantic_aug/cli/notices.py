"""Messages of this package on a terminal: notices on stderr, results on stdout."""

import contextlib
import logging
import os
import sys

# The level of results, which a command prints on stdout.
RESULT = logging.INFO + 5


@contextlib.contextmanager
def notices():
    """Print this package's messages: results always, notices once; of libraries only errors."""
    _quiet_libraries()
    logger = logging.getLogger("semantic_aug")
    handler, said = _AboveBars(), set()

    def is_new(record):
        message = record.getMessage()
        is_old = message in said
        said.add(message)
        return record.levelno == RESULT or not is_old

    handler.addFilter(is_new)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _AboveBars(logging.Handler):
    """Writes one line per message, and lets progress bars go on below it."""

    def emit(self, record):
        from tqdm import tqdm

        if record.levelno == RESULT:
            print(record.getMessage())
            return
        tqdm.write(" ".join(record.getMessage().split()), file=sys.stderr)


def _quiet_libraries():
    # Libraries read these variables when they are imported, which happens later.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
