"""Memory figures in words and in error bodies."""

from plimsoll.memory.plan import plan
from plimsoll.memory.report import GIB, never_fits
from plimsoll.memory.sample import Reading, Sample


def test_the_figures_of_what_never_fits_are_those_of_the_source_that_it_does_not_fit_into() -> None:
    fuller, smaller = Reading("host", 100 * GIB, 60 * GIB), Reading("limit", 4 * GIB, GIB)
    sample = Sample(0.0, (fuller, smaller))
    error = never_fits("huge", plan(10 * GIB, [], sample, critical_percent=95.0), sample)
    assert "10.0 GiB of 4.0 GiB" in error.message
    told = {key: error.details[key] for key in ("required_gb", "total_gb", "used_percent", "binding_source")}
    assert told == {"required_gb": 10.0, "total_gb": 4.0, "used_percent": 25.0, "binding_source": "limit"}
