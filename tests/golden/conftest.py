"""Ends a run over the recorded vectors with the number of those covered and the names of the rest."""

from tests.golden import adapters, vectors


def pytest_terminal_summary(terminalreporter):
    """Prints the coverage of the vector folder."""
    found = vectors.find()
    missing = [v.name for v in found if adapters.adapter(v) is None]
    terminalreporter.write_line(f"vectors: covered {len(found) - len(missing)}, not covered {len(missing)}")
    if missing:
        terminalreporter.write_line("not covered: " + " ".join(missing))
