#!/usr/bin/env python3
"""Compares one run of the Autobahn suite with what is expected of every case.

    check.py REPORT_DIR [--cases LIST]   exit status 1 if a case differs, has no result, or has no expectation
    check.py REPORT_DIR --record         prints the run as lines of expected.txt

A line of expected.txt is `CASE BEHAVIOUR CLOSE`: the verdict of the suite, and the close code that the server sent, `-` for
none. A case must end as its line says: a better verdict or another code is a change that somebody has to look at, too.
Where both of two are right, they are joined by `|`.
"""

import argparse
import fnmatch
import json
import pathlib
import sys

AGENT = "tidewire"
EXPECTED = pathlib.Path(__file__).with_name("expected.txt")
CLEAN = ("OK", "INFORMATIONAL")


def order(case):
    return [int(part) for part in case.split(".")]


def read_expected(text):
    """The lines of expected.txt as {case: (behaviour, close)}."""
    expected = {}
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split("#")[0].split()
        if not fields:
            continue
        if len(fields) != 3 or fields[0] in expected:
            raise SystemExit(f"{EXPECTED.name}:{number}: not a new line of CASE BEHAVIOUR CLOSE: {line!r}")
        expected[fields[0]] = (fields[1], fields[2])
    return expected


def read_results(report):
    """The suite's index as {case: (behaviour, close)} and the cases whose closing handshake went wrong."""
    index = report / "index.json"
    if not index.exists():
        raise SystemExit(f"no {index}: was the server reachable? See {report / 'wstest.log'}")
    results, unclean = {}, {}
    for case, result in json.loads(index.read_text()).get(AGENT, {}).items():
        code = result["remoteCloseCode"]
        results[case] = (result["behavior"], "-" if code is None else str(code))
        if result["behaviorClose"] not in CLEAN:
            unclean[case] = result["behaviorClose"]
    return results, unclean


def matches(result, expected):
    return all(got in wanted.split("|") for got, wanted in zip(result, expected))


def compare(expected, results, unclean):
    """What differs, one line each, in the order of the cases."""
    wrong = []
    for case in sorted(expected.keys() | results.keys(), key=order):
        if case not in results:
            wrong.append(f"{case}: no result")
        elif case not in expected:
            wrong.append(f"{case}: no expectation; got {' '.join(results[case])}")
        elif not matches(results[case], expected[case]):
            wrong.append(f"{case}: expected {' '.join(expected[case])}, got {' '.join(results[case])}")
        elif case in unclean:
            wrong.append(f"{case}: closing handshake {unclean[case]}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=pathlib.Path)
    parser.add_argument("--cases", default="*", help="case patterns joined by commas")
    parser.add_argument("--record", action="store_true", help="print the run as expectations")
    args = parser.parse_args()

    results, unclean = read_results(args.report)
    if args.record:
        for case in sorted(results, key=order):
            print(case, *results[case])
        return 0

    patterns = args.cases.split(",")

    def selected(cases):
        return {case: cases[case] for case in cases if any(fnmatch.fnmatchcase(case, p) for p in patterns)}

    expected, results = selected(read_expected(EXPECTED.read_text())), selected(results)
    if not expected:
        raise SystemExit(f"no case of {EXPECTED.name} matches {args.cases}")
    wrong = compare(expected, results, unclean)
    verdicts = [behaviour for behaviour, _ in results.values()]
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    codes = sum(case in results and results[case][1] in close.split("|") for case, (_, close) in expected.items())
    print(f"autobahn: {len(results)} cases: {counts}; close codes as expected: {codes} of {len(expected)}")
    for line in wrong:
        print(f"  {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
