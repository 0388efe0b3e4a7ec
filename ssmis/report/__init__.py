# SPDX-License-Identifier: Apache-2.0
"""Reports: tables as text and pictures of cases."""

from ssmis.report.pictures import case_picture
from ssmis.report.tables import format_table

__all__ = ["case_picture", "format_table"]
