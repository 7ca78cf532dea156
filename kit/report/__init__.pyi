from . import explore as explore
from . import pages as pages
from . import plots as plots
from . import report as report
