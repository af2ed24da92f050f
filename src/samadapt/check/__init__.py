"""`check`: reads every case once, and says what is wrong or unusual in a data set before a training is wasted on it."""

from samadapt.check.doctor import check
from samadapt.check.findings import Finding, summary, to_json
from samadapt.check.page import demand_page, write_page
