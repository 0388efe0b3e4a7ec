# SPDX-License-Identifier: Apache-2.0
"""Reports: one HTML file about runs, tables as text, and pictures of cases."""

from ssmis.report.folders import report_runs, seeds_table
from ssmis.report.html import write_report
from ssmis.report.pictures import case_picture
from ssmis.report.runs import CaseView, ReportRun, pick_cases
from ssmis.report.study import Study, read_study
from ssmis.report.tables import format_table

__all__ = [
    "CaseView",
    "ReportRun",
    "Study",
    "case_picture",
    "format_table",
    "pick_cases",
    "read_study",
    "report_runs",
    "seeds_table",
    "write_report",
]
