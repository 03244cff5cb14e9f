"""Everything that docs call "not yet run", on this machine, with the package that is installed.

``python ops/machine_check.py [--quick] [--json FILE]`` is ``plimsoll doctor --deep``: the report as text, and as
JSON into FILE. It exits with 1 where there is a problem.
"""

import argparse
import json
import sys
from pathlib import Path

from plimsoll import config
from plimsoll.cli.deep_checks import Effort, examine_deeply
from plimsoll.cli.machine_checks import PROBLEM, count, examine_machine, print_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short answers, and two at once at most")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    effective = config.load()
    machine = list(examine_machine(effective))
    report = examine_deeply(effective, effort=Effort((1, 2), 8) if options.quick else None)
    report.findings[:0] = machine
    print(", ".join(f"{name} {version}" for name, version in report.versions.items()) + "\n")
    print_report(report.findings)
    if options.json:
        findings = [one.as_json() for one in report.findings]
        told = {"versions": report.versions, "findings": findings, "figures": report.figures, "seconds": report.seconds}
        options.json.write_text(json.dumps(told, indent=2, default=str), encoding="utf-8")
    return min(1, count(report.findings, PROBLEM))


if __name__ == "__main__":
    sys.exit(main())
