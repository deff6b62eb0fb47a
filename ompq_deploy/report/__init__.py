"""Everything a run found out, for machines (`report.json`) and people (terminal and `report.html`)."""

from ompq_deploy.report.document import load_report, renewed_report, report_document
from ompq_deploy.report.terminal import print_report, write_html

__all__ = ["load_report", "print_report", "renewed_report", "report_document", "write_html"]
