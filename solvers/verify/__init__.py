"""Operators against independent solvers: the conformance suite behind `argprune verify`."""

from argprune.solvers.verify.operators import check_operator as check_operator
from argprune.solvers.verify.operators import examples as examples
from argprune.solvers.verify.operators import names as names
from argprune.solvers.verify.report import Check as Check
from argprune.solvers.verify.report import Report as Report
from argprune.solvers.verify.report import Speed as Speed
