from . import ensemble as ensemble
from . import export as export
from . import runs as runs
