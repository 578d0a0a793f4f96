#!/usr/bin/env python3
"""Opens an HdrHistogram interval log, such as /api/latency.hlog, with the independent reader of PyPI's `hdrhistogram`.

Prints the intervals, values and percentiles of each tag. Fails if the log has no interval, or one without a tag.

    python3 -m venv VENV && VENV/bin/pip install hdrhistogram
    VENV/bin/python scripts/check-hlog.py FILE
"""

import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

# The server's range: 1 ns to 60 s, three significant digits.
LOWEST, HIGHEST, DIGITS = 1, 60_000_000_000, 3
PERCENTILES = (50, 90, 99, 99.9, 99.99)


def read(path):
    """Number of intervals and the sum of them, by tag, in order of appearance."""
    tags = {}
    reader = HistogramLogReader(path, HdrHistogram(LOWEST, HIGHEST, DIGITS))
    while (interval := reader.get_next_interval_histogram()) is not None:
        tag = interval.get_tag()
        if not tag:
            sys.exit(f"{path}: an interval without a tag")
        intervals, total = tags.get(tag, (0, HdrHistogram(LOWEST, HIGHEST, DIGITS)))
        total.add(interval)
        tags[tag] = (intervals + 1, total)
    reader.close()
    return tags


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    path = sys.argv[1]
    tags = read(path)
    if not tags:
        sys.exit(f"{path}: no intervals")
    names = [f"p{percentile:g}" for percentile in PERCENTILES]
    print(f"{'tag':<20}{'intervals':>10}{'values':>12}", *(f"{name:>12}" for name in [*names, "max"]))
    for tag, (intervals, histogram) in tags.items():
        if histogram.get_total_count() == 0:
            sys.exit(f"{path}: tag {tag} has no values")
        values = [histogram.get_value_at_percentile(percentile) for percentile in PERCENTILES]
        values.append(histogram.get_max_value())
        print(
            f"{tag:<20}{intervals:>10}{histogram.get_total_count():>12}",
            *(f"{value:>12}" for value in values),
        )


if __name__ == "__main__":
    main()
