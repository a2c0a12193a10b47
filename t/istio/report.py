#!/usr/bin/env python3
"""report.py RUNDIR: hold RUNDIR/got-{out,in}.json against recordings/yard-{out,in}.json, and against the list in `expected`.

Writes what differs to RUNDIR/differs.log. Exit code 1 if a case listed in `expected` differs.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main():
    run = pathlib.Path(sys.argv[1])
    counts, rest, names, text = [], [], set(), []
    for side, word in (("out", "outbound"), ("in", "inbound")):
        want = json.loads((HERE / f"recordings/yard-{side}.json").read_text())
        got = json.loads((run / f"got-{side}.json").read_text())
        names |= {f"{word}: {case}" for case in want}
        # As text: the order of headers counts.
        differs = [case for case in want if json.dumps(got.get(case)) != json.dumps(want[case])]
        counts.append(f"{len(want) - len(differs)} of {len(want)} {word}")
        rest += [f"{word}: {case}" for case in differs]
        for case in differs:
            found = json.dumps(got[case]) if case in got else "not run: out of time"
            text.append(f"{word}: {case}\n  want {json.dumps(want[case])}\n  got  {found}\n")
    (run / "differs.log").write_text("".join(text))
    lines = (HERE / "expected").read_text().splitlines()
    expected = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    if unknown := expected - names:
        sys.exit(f"{HERE}/expected: no such case: {'; '.join(sorted(unknown))}")
    lost = [name for name in rest if name in expected]
    for name in lost:
        print(f"{name}: must equal Envoy's (it is listed in t/istio/expected) and does not")
    print(", ".join(counts) + " equal Envoy's")
    print("\n".join(rest), end="\n" if rest else "")
    sys.exit(bool(lost))


main()
