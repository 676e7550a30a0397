"""The progress of an import on a terminal, and its report."""

import io

from exai.cli.importing import ImportBar, time_text
from exai.importers.records import DamagedRecord, PassedOver
from exai.importers.report import MAX_SHOWN, ImportReport


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_estimates_the_time_that_is_left() -> None:
    now = [100.0]
    terminal = Terminal()
    bar = ImportBar(terminal, lambda: now[0])
    now[0] = 130.0
    bar.draw(ImportReport(messages=1_234, read_bytes=250, total_bytes=1_000))
    bar.draw(ImportReport(messages=9_999, read_bytes=260, total_bytes=1_000))
    bar.end()

    assert terminal.getvalue().startswith(
        "\r[#######                       ]  25% 1,234 messages, about 1 min 30 s left"
    )
    assert "9,999" not in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_there_is_no_bar_without_a_terminal() -> None:
    stream = io.StringIO()
    bar = ImportBar(stream, lambda: 0.0)
    bar.draw(ImportReport(total_bytes=1))
    bar.end()

    assert stream.getvalue() == ""


def test_times_are_shown_in_whole_units() -> None:
    assert [time_text(each) for each in (5.9, 61, 7_300)] == ["5 s", "1 min 1 s", "2 h 1 min"]


def test_a_report_has_a_limited_number_of_lines() -> None:
    report = ImportReport()
    for place in range(1_000):
        report.count(DamagedRecord(f"line {place}", "is not JSON"))
        report.count(PassedOver(f"lines of type {place}"))

    assert (report.damaged, len(report.problems), sum(report.left_out.values())) == (1_000, MAX_SHOWN, 1_000)
    assert len(report.lines()) < 250
    assert "  and 900 more" in report.lines()
