from .parts import find_encoders as find_encoders
from .record import Clock as Clock
from .record import Entry as Entry
from .seeking import BestResult as BestResult
from .seeking import BestSearch as BestSearch
from .seeking import seek_best as seek_best
